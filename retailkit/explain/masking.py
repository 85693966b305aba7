"""Hiding superpixels and words, and asking a model what it says then.

The features of a local explanation are the superpixels of the image and the tokens of the text (words or lines).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.linalg import hadamard
from skimage import segmentation
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm.auto import tqdm

from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import Word
from retailkit.data.text import kept_apart, redact_words
from retailkit.inference import Predictor, composite
from retailkit.models.classifier import Features, ProductClassifier, evaluating

ENUMERATED = 12  # features: up to so many, all masks are listed and shuffled
IMAGES_AT_ONCE = 128  # masks of full size in memory
PAIRS_AT_ONCE = 4096
ROUNDING = 10 * torch.finfo(torch.float32).eps  # of values in [0,1] after a few operations
TARGETS = ("margin", "prob", "log_prob", "sqrt_prob")


# -- Features of the image: superpixels.


SEGMENTERS = {  # called with an image (H,W,3) and the wanted number of segments
    "slic": lambda image, count: segmentation.slic(image, count, compactness=10, sigma=1, start_label=0),
    "felzenszwalb": lambda image, count: segmentation.felzenszwalb(
        image, scale=100, sigma=0.5, min_size=image[..., 0].size // (2 * count)
    ),
}


def segment(image: Tensor, segments: str | np.ndarray = "slic", count: int = 50) -> np.ndarray:
    """Divide an image (3,H,W) in [0,1] into superpixels, (H,W) int labelled 0..S-1 without gaps.

    `segments` is a key of `SEGMENTERS`, which come near the wanted number `count`, or labels (H,W) that exist already.
    """
    if isinstance(segments, str):
        segmenter = SEGMENTERS[pick(SEGMENTERS, segments, "segmenter")]
        if count < 1:
            raise UsageError(f"n_segments={count} is too small; use 1 or more")
        segments = segmenter(image.permute(1, 2, 0).double().cpu().numpy(), count)
    labels = np.asarray(segments)
    if labels.shape != (size := tuple(image.shape[1:])) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"segments are {labels.dtype} of shape {labels.shape}; give integers of {size}")
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def cut_out(segments: np.ndarray, tokens: Sequence[Token]) -> tuple[np.ndarray, np.ndarray]:
    """Make the boxes of tokens segments of their own, so that a word can be hidden on the image together with its text.

    Returns labels (H,W) with the superpixels first and the boxes after them (the last one on top), without gaps, and
    (T,) the label of each token's boxes; -1 where they cover no pixel.
    """
    labels, first = segments.copy(), segments.max() + 1
    for number, token in enumerate(tokens):
        for word in token.words:
            x0, y0 = (max(0, int(np.floor(edge))) for edge in word.box[:2])
            x1, y1 = (max(0, int(np.ceil(edge))) for edge in word.box[2:])
            if word.box[0] < word.box[2] and word.box[1] < word.box[3]:
                labels[y0:y1, x0:x1] = first + number
    present, dense = np.unique(labels, return_inverse=True)
    place = {int(label): number for number, label in enumerate(present)}
    links = np.array([place.get(first + number, -1) for number in range(len(tokens))], dtype=int)
    return dense.reshape(labels.shape), links


# -- Features of the text: words or lines.


@dataclass(frozen=True)
class Token:
    """A piece of text that is kept or hidden as a whole, and its words with their boxes on the image."""

    text: str
    words: tuple[Word, ...]


def tokens_of(words: Sequence[Word] | str | None, token: str = "word") -> tuple[Token, ...]:
    """Divide OCR words, or a text, into tokens, in reading order, without barcodes, which text encoders never see.

    A `token` is a `word`, or a `line`: neighbours at one height with less than two characters' space between them.
    """
    pick(("word", "line"), token, "kind of token")
    if isinstance(words, str):
        words = [Word(text, (0.0, 0.0, 0.0, 0.0)) for text in words.split()]
    lines: list[list[Word]] = []
    for word in (word for word in redact_words(words or []) if word.text.strip()):
        if token == "line" and lines and _on_one_line(lines[-1][-1], word):
            lines[-1].append(word)
        else:
            lines.append([word])
    return tuple(Token(" ".join(word.text for word in line), tuple(line)) for line in lines)


def _on_one_line(left: Word, right: Word) -> bool:
    height = min(left.box[3] - left.box[1], right.box[3] - right.box[1])
    overlap = min(left.box[3], right.box[3]) - max(left.box[1], right.box[1])
    gap = right.box[0] - left.box[2]
    return height > 0 and overlap > height / 2 and -height / 2 < gap < 1.5 * height


# -- Baselines: what is shown where a superpixel is hidden, of an image (3,H,W) and its segments (H,W).


def _mean(image: Tensor, segments: np.ndarray) -> Tensor:
    """Each segment in its mean colour, as in lime."""
    flat, pixels = segments.ravel(), image.flatten(1).double().cpu().numpy()
    means = np.stack([np.bincount(flat, weights=channel) for channel in pixels]) / np.maximum(np.bincount(flat), 1)
    return torch.from_numpy(means[:, segments]).to(image)


def _blur(image: Tensor, segments: np.ndarray) -> Tensor:
    sigma = image.shape[-1] / 12
    return gaussian_blur(image, kernel_size=[2 * int(2 * sigma) + 1] * 2, sigma=[sigma, sigma])


def _inpaint(image: Tensor, segments: np.ndarray) -> Tensor:
    """Each segment as its surroundings suggest (Telea 2004); the mean colour where there are none."""
    if not segments.any():
        return _mean(image, segments)
    pixels = (image.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    filled = pixels.copy()
    for label in range(segments.max() + 1):
        hole = segments == label
        filled[hole] = cv2.inpaint(pixels, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)[hole]
    return torch.from_numpy(filled).permute(2, 0, 1).to(image) / 255


BASELINES = {
    "mean": _mean,
    "blur": _blur,
    "inpaint": _inpaint,
    "grey": lambda image, segments: torch.full_like(image, 0.5),
}


def baseline_image(image: Tensor, segments: np.ndarray, baseline: str) -> Tensor:
    """Return the image (3,H,W) in [0,1] that is shown where segments (H,W) are hidden, by a key of `BASELINES`.

    What differs from the image by no more than rounding is the image: else a network's answer to noise is explained.
    """
    shown = BASELINES[pick(BASELINES, baseline, "baseline")](image, segments).clamp(0, 1)
    return torch.where((shown - image).abs() <= ROUNDING, image, shown)


def hide(image: Tensor, segments: np.ndarray, labels: Sequence[int], feather: float = 2.0) -> Tensor:
    """Return the image (3,H,W) in [0,1] with the segments of some labels in their mean colour; see `MaskedModel`."""
    kept = 1 - _feathered(segments, feather)[list(labels)].sum(0, keepdim=True)
    return composite(image, kept[None], baseline_image(image, segments, "mean"))[0].clamp(0, 1)


def _feathered(segments: np.ndarray, sigma: float) -> Tensor:
    """Return the pixels of each label, (L,H,W) in [0,1], with soft edges; they add up to 1 everywhere."""
    planes = torch.nn.functional.one_hot(torch.from_numpy(segments)).permute(2, 0, 1).float()
    if not sigma:
        return planes
    radius = min(int(3 * sigma) + 1, min(segments.shape) - 1)
    return gaussian_blur(planes, kernel_size=[2 * radius + 1] * 2, sigma=[float(sigma)] * 2)


# -- Masks: which features are kept in which evaluation.


def masks(features: int, count: int, seed: int = 0) -> np.ndarray:
    """Return at most `count` (rounded down to pairs) distinct masks (N,features) bool, True = kept.

    Masks 2n and 2n+1 are complements, so that effects of even order cancel in the weights (Covert and Lee 2021); 0 and
    1 keep everything and nothing. Up to `ENUMERATED` features, all masks come in random order. With more, masks are
    blocks of a Hadamard matrix, in which features are uncorrelated (Plackett and Burman 1946). A longer list begins
    with the shorter one of the same seed.
    """
    first = np.ones((1, features), dtype=bool)
    if not features:
        return first
    rng, wanted = np.random.default_rng(seed), min(max(1, count // 2), 2 ** (features - 1))
    if features <= ENUMERATED:
        numbers = rng.permutation(np.arange(1, 2 ** (features - 1)))
        halves = np.concatenate([first, (numbers[:, None] >> np.arange(features)) % 2 == 1])[:wanted]
    else:
        halves = _hadamard_masks(features, wanted, rng)
    return np.stack([halves, ~halves], 1).reshape(-1, features)


def _hadamard_masks(features: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return masks (count,features), the first one keeping everything; none is another one or its complement."""
    everything = np.ones(features, dtype=bool)
    found = {everything.tobytes(): everything}
    order = 1 << features.bit_length()  # the smallest power of two above the number of features
    signs = hadamard(order) > 0
    while len(found) < count:
        columns = 1 + rng.choice(order - 1, features, replace=False)
        flips = rng.random(features) < 0.5
        for mask in signs[rng.permutation(order)][:, columns] ^ flips:
            if (~mask).tobytes() not in found:
                found.setdefault(mask.tobytes(), mask)
    return np.array(list(found.values())[:count])


def paired(before: tuple[int, int], count: tuple[int, int], partners: int, seed: int) -> np.ndarray:
    """Return new pairs (N,2) of image masks and text masks, none twice.

    Each mask that was added since `before` gets `partners` masks of the other kind. With each pair comes the pair of
    both complements, so that effects of even order cancel also where they join superpixels and words.
    """
    rng, pairs = np.random.default_rng([seed, *before]), {(0, 0)} if before[0] == 0 else set()
    for side, (first, end) in enumerate(zip(before, count, strict=True)):
        others = count[1 - side]
        for mask in range(first, end):
            for other in rng.choice(others, min(partners, others), replace=False).tolist():
                pairs.add((mask, other) if side == 0 else (other, mask))
    pairs |= {(image ^ 1, text ^ 1) for image, text in pairs}
    return np.array(sorted(pairs), dtype=int).reshape(-1, 2)


# -- The masked model.


class MaskedModel:
    """What a model says of an image and its words when parts of them are hidden.

    Each distinct masked image and text is encoded once, and the two are combined only in the head, because an encoder
    costs a thousand times what the head does. What the model does not use is left out.

    Args:
        predictor: of the model.
        image: (3,size,size) in [0,1].
        segments: (H,W) labels as of `segment`, or as of `cut_out` where `links` are given.
        tokens: of text.
        links: (T,) labels of the boxes that are hidden together with each token, or -1; None links nothing.
        baseline: key of `BASELINES`.
        feather: standard deviation in pixels by which the edges of hidden segments are softened. Networks respond to
            sharp edges as if they were part of the product (Grund Pihlgren and Främling 2024).

    Attributes:
        n_segments, n_tokens: S superpixels without the boxes of linked tokens, and T tokens.
        areas: (S,) share of the image that each superpixel covers.

    Raises:
        UserError: nothing is left that the model uses.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: Tensor | None = None,
        segments: np.ndarray | None = None,
        tokens: Sequence[Token] = (),
        links: np.ndarray | None = None,
        baseline: str = "mean",
        feather: float = 2.0,
    ) -> None:
        uses = predictor.model.modalities
        self.predictor, self.classes = predictor, predictor.model.classes
        self.image = image if "image" in uses else None
        links = np.full(len(tokens), -1) if links is None or self.image is None else np.asarray(links, dtype=int)
        used = (links >= 0) | ("text" in uses)
        self.tokens = tuple(token for token, use in zip(tokens, used, strict=True) if use)
        self.links = links[used]
        if self.image is None and not self.tokens:
            wanted = " and ".join(uses)
            raise UserError(f"nothing to explain by: the model uses {wanted}; give it, or leave this photo out")
        self.segments, areas = None, np.zeros(0)
        if self.image is not None:
            self.segments = segment(self.image, np.zeros(image.shape[1:], int) if segments is None else segments)
            self.baseline_image = baseline_image(self.image, self.segments, baseline)
            self._soft = _feathered(self.segments, feather)
            areas = np.bincount(self.segments.ravel()) / self.segments.size
        self.n_segments, self.n_tokens = len(areas) - int((self.links >= 0).sum()), len(self.tokens)
        self.areas = areas[: self.n_segments]
        self._images: dict[bytes, Tensor] = {}
        self._texts: dict[str, Features] = {}

    def with_baseline(self, baseline: str) -> MaskedModel:
        """Return the same masked model with another baseline."""
        other = copy.copy(self)
        if self.image is not None:
            other.baseline_image, other._images = baseline_image(self.image, self.segments, baseline), {}
        return other

    def images(self, image_keep: np.ndarray, text_keep: np.ndarray | None = None) -> Tensor:
        """Return the image that is left by each mask (N,S), and (N,T) where words are linked: (N,3,H,W)."""
        kept = self._labels_kept(*self._checked(image_keep, text_keep))
        return composite(self.image, self._alpha(kept), self.baseline_image)

    def logits(self, image_keep: np.ndarray, text_keep: np.ndarray | None = None, progress: bool = False) -> np.ndarray:
        """Return logits (N,K) float32 for N masks (N,S) and (N,T) bool, True = kept; without the latter all is kept.

        All logits are 0 where nothing is left that the model could answer by.
        """
        image_keep, text_keep = self._checked(image_keep, text_keep)
        image = text = None
        if self.image is not None:
            image = self._encoded_images(self._labels_kept(image_keep, text_keep), progress)
        if "text" in self.predictor.model.modalities:
            words = np.array([token.text for token in self.tokens], dtype=object)
            text = self._encoded_texts([" ".join(words[row]) for row in text_keep])
        parts = []
        with evaluating(self.predictor.model):
            for start in range(0, len(image_keep), PAIRS_AT_ONCE):
                rows = slice(start, start + PAIRS_AT_ONCE)
                parts.append(self._classified(*(None if f is None else f.rows(rows) for f in (image, text))))
        return torch.cat(parts).cpu().numpy()

    def _classified(self, image: Features | None, text: Features | None) -> Tensor:
        model = self.predictor.model
        if image is not None or model.head.answers_without_features:
            return model.classify(image, text).float()
        logits = torch.zeros(len(text.values), len(self.classes))
        readable = text.available.nonzero()[:, 0]
        if len(readable):
            logits[readable.cpu()] = model.classify(None, text.rows(readable)).float().cpu()
        return logits

    def _checked(self, image_keep: np.ndarray, text_keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        text_keep = np.ones((len(image_keep), self.n_tokens)) if text_keep is None else text_keep
        image_keep, text_keep = np.asarray(image_keep, dtype=bool), np.asarray(text_keep, dtype=bool)
        wanted = ((len(image_keep), self.n_segments), (len(image_keep), self.n_tokens))
        if (image_keep.shape, text_keep.shape) != wanted:
            raise UsageError(f"masks are {image_keep.shape} and {text_keep.shape}; give {wanted[0]} and {wanted[1]}")
        return image_keep, text_keep

    def _labels_kept(self, image_keep: np.ndarray, text_keep: np.ndarray) -> np.ndarray:
        """Return which labels of `segments` are kept, (N,L): superpixels, then boxes of linked tokens."""
        return np.concatenate([image_keep, text_keep[:, self.links >= 0]], 1)

    def _alpha(self, kept: np.ndarray) -> Tensor:
        """Return masks (N,1,H,W) in [0,1] of kept labels (N,L)."""
        soft = torch.from_numpy(kept).to(self._soft) @ self._soft.flatten(1)
        return soft.clamp(0, 1).view(len(kept), 1, *self._soft.shape[1:])

    def _encoded_images(self, kept: np.ndarray, progress: bool) -> Features:
        keys = [row.tobytes() for row in kept]
        fresh = {key: row for key, row in zip(keys, kept, strict=True) if key not in self._images}
        names, rows = list(fresh), np.array(list(fresh.values()))
        with tqdm(total=len(fresh), desc="explain", delay=2, leave=False, disable=not progress) as bar:
            for start in range(0, len(fresh), IMAGES_AT_ONCE):
                part = slice(start, start + IMAGES_AT_ONCE)
                encoded = self.predictor.encode_perturbed(self.image, self._alpha(rows[part]), self.baseline_image)
                self._images.update(zip(names[part], encoded.values, strict=True))
                bar.update(len(names[part]))
        return Features.present(torch.stack([self._images[key] for key in keys]))

    def _encoded_texts(self, texts: Sequence[str]) -> Features:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if fresh:
            encoded = self.predictor.encode_text([kept_apart(text) for text in fresh])
            self._texts.update({text: encoded.rows(slice(n, n + 1)) for n, text in enumerate(fresh)})
        return Features.joined([self._texts[text] for text in texts])


def as_predictor(model: ProductClassifier | Predictor, image: Tensor | None) -> Predictor:
    """Return a predictor for images like this one; one that is given stays as it is.

    Raises:
        UserError: the model uses images, and this one is not square, or not as large as the predictor takes.
    """
    predictor = model if isinstance(model, Predictor) else None
    if image is None or "image" not in (predictor.model if predictor else model).modalities:
        return predictor or Predictor(model)
    side = predictor.size if predictor else image.shape[-1]
    if image.shape != (3, side, side):
        wanted = f"(3, {side}, {side})" if predictor else "a square one, (3, size, size), as a data set does"
        raise UserError(f"the image is {tuple(image.shape)}; give {wanted}")
    return predictor or Predictor(model, side)


def targets(logits: np.ndarray, explained: Sequence[int], contrasts: Sequence[int], target: str) -> np.ndarray:
    """Return what is explained, (N,C), of logits (N,K): C classes, each with the index of its contrast, -1 for none.

    `target` is `margin` (logit of the class less that of its contrast), `prob`, `log_prob` or `sqrt_prob`.
    """
    logits, explained, contrasts = logits.astype(float), list(explained), np.array(contrasts)
    if pick(TARGETS, target, "target") == "margin":
        return logits[:, explained] - np.where(contrasts >= 0, logits[:, contrasts], 0)
    log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[:, explained]
    return {"log_prob": log_probs, "sqrt_prob": np.exp(log_probs / 2), "prob": np.exp(log_probs)}[target]
