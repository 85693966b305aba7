"""Hiding parts of a picture and of its words, and asking a model what it says then.

The parts are players: superpixels of the picture, and units of text (words or lines). A mask says which of them are
kept. `MaskedModel` gives the logits of any masks. Image and text are encoded once per distinct mask and fused in pairs,
because an encoder costs a thousand times what the head does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.linalg import hadamard
from skimage import segmentation as skimage_segmentation
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from retailkit.config import UsageError, UserError, pick
from retailkit.data.table import Word
from retailkit.data.text import kept_apart, redact_words
from retailkit.inference import Predictor, composite
from retailkit.models.classifier import Features, ProductClassifier, evaluating

ENUMERATED = 12  # players: up to so many, all masks are listed and shuffled
IMAGES_AT_ONCE = 256  # masks of full size in memory
PAIRS_AT_ONCE = 4096

Segmenter = Callable[[np.ndarray, int], np.ndarray]
Baseline = Callable[[Tensor, np.ndarray], Tensor]


# -- Players of the picture: superpixels.


def _slic(image: np.ndarray, count: int) -> np.ndarray:
    return skimage_segmentation.slic(image, n_segments=count, compactness=10, sigma=1, start_label=0)


def _quickshift(image: np.ndarray, count: int) -> np.ndarray:
    """With the parameters of lime 0.2; the number of segments follows from the picture."""
    return skimage_segmentation.quickshift(image, kernel_size=4, max_dist=200, ratio=0.2, rng=0)


def _felzenszwalb(image: np.ndarray, count: int) -> np.ndarray:
    """The number of segments follows from the picture."""
    return skimage_segmentation.felzenszwalb(image, scale=100, sigma=0.5, min_size=image[..., 0].size // (2 * count))


def _grid(image: np.ndarray, count: int) -> np.ndarray:
    """Return equal rectangles, at most `count` of them."""
    side = max(1, int(count**0.5))
    rows, columns = (np.minimum(np.arange(n) * side // n, side - 1) for n in image.shape[:2])
    return rows[:, None] * side + columns


# Called as segmenter(image (H,W,3) float in [0,1], wanted number) -> (H,W) labels.
SEGMENTERS: dict[str, Segmenter] = {
    "slic": _slic,
    "quickshift": _quickshift,
    "felzenszwalb": _felzenszwalb,
    "grid": _grid,
}


def segment(image: Tensor, segments: str | np.ndarray | Segmenter = "slic", count: int = 50) -> np.ndarray:
    """Divide a picture into superpixels, (H,W) int labelled 0..S-1 without gaps.

    Args:
        image: (3,H,W) in [0,1].
        segments: key of `SEGMENTERS`, a function like those, or labels (H,W) that are there already.
        count: number of superpixels wished for; segmenters come near it, or ignore it.

    Raises:
        UsageError: unknown segmenter, or labels of another shape or kind.
    """
    height, width = image.shape[1:]
    if isinstance(segments, str):
        segments = SEGMENTERS[pick(SEGMENTERS, segments, "segmenter")]
    if callable(segments):
        if count < 1:
            raise UsageError(f"n_segments={count} is too small; use 1 or more")
        segments = segments(image.permute(1, 2, 0).double().cpu().numpy(), count)
    labels = np.asarray(segments)
    if labels.shape != (height, width) or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"segments are {labels.dtype} of shape {labels.shape}; give integers of ({height}, {width})")
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def cut_out(segments: np.ndarray, units: Sequence[Token]) -> tuple[np.ndarray, np.ndarray]:
    """Make the boxes of text segments of their own.

    Args:
        segments: (H,W) labels 0..S-1.
        units: T units of text with boxes in its pixels; where boxes overlap, the last one has the pixels.

    Returns:
        Labels (H,W) with the superpixels first and the boxes after them, without gaps, and (T,) the label of each
        unit's boxes; -1 where they show no pixel.
    """
    labels, first = segments.copy(), segments.max() + 1
    for number, unit in enumerate(units):
        for word in unit.words:
            x0, y0 = (max(0, int(np.floor(edge))) for edge in word.box[:2])
            x1, y1 = (max(0, int(np.ceil(edge))) for edge in word.box[2:])
            if word.box[0] < word.box[2] and word.box[1] < word.box[3]:
                labels[y0:y1, x0:x1] = first + number
    seen, dense = np.unique(labels, return_inverse=True)
    places = {int(label): place for place, label in enumerate(seen)}
    return dense.reshape(labels.shape), np.array([places.get(first + n, -1) for n in range(len(units))], dtype=int)


# -- Players of the text: words or lines.


@dataclass(frozen=True)
class Token:
    """A piece of text that is kept or hidden as a whole.

    Attributes:
        text: its words, joined by spaces.
        words: where they are on the picture.
    """

    text: str
    words: tuple[Word, ...]


def tokens_of(words: Sequence[Word] | str | None, token: str = "word") -> tuple[Token, ...]:
    """Divide what was read into tokens, in reading order; barcodes are taken out, as encoders never see them.

    Args:
        words: with boxes, in reading order; or a plain text, whose words have no place on the picture; or None.
        token: `word`, or `line`: neighbours that stand on one height with less than two characters' space between them.

    Raises:
        UsageError: unknown kind of token.
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


# -- What takes the place of a hidden superpixel.


def _mean(image: Tensor, segments: np.ndarray) -> Tensor:
    """Each segment in its mean colour, as in lime."""
    flat, pixels = segments.ravel(), image.flatten(1).double().cpu().numpy()
    sums = np.stack([np.bincount(flat, weights=channel) for channel in pixels])
    means = sums / np.maximum(np.bincount(flat), 1)
    return torch.from_numpy(means[:, segments]).to(image)


def _blur(image: Tensor, segments: np.ndarray) -> Tensor:
    """The picture out of focus: a Gaussian of a twelfth of its side."""
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


def _grey(image: Tensor, segments: np.ndarray) -> Tensor:
    return torch.full_like(image, 0.5)


# Called as baseline(image (3,H,W), segments (H,W)) -> (3,H,W) in [0,1].
BASELINES: dict[str, Baseline] = {"mean": _mean, "blur": _blur, "inpaint": _inpaint, "grey": _grey}


def fill(image: Tensor, segments: np.ndarray, baseline: str | Sequence[float]) -> Tensor:
    """Return the picture (3,H,W) that shows where segments are hidden.

    Args:
        image: (3,H,W) in [0,1].
        segments: (H,W) labels.
        baseline: key of `BASELINES`, or a colour (r, g, b) in [0,1].

    Raises:
        UsageError: neither of them.
    """
    if isinstance(baseline, str):
        return BASELINES[pick(BASELINES, baseline, "baseline")](image, segments).clamp(0, 1)
    colour = np.asarray(baseline)
    if colour.shape != (3,) or colour.dtype.kind not in "fiu" or not ((colour >= 0) & (colour <= 1)).all():
        raise UsageError(f"baseline={baseline!r} is no colour; give three numbers in [0, 1], or {', '.join(BASELINES)}")
    return torch.from_numpy(colour).to(image).view(3, 1, 1).expand_as(image).clone()


# -- Mask designs: which players are kept in which evaluation.


def _random_rows(players: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Each player is kept with chance 1/2, as in lime."""
    while True:
        yield rng.random(players) < 0.5


def _paired_rows(players: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Each random mask is followed by its complement: effects of even order cancel (Covert and Lee 2021)."""
    for row in _random_rows(players, rng):
        yield from (row, ~row)


def _stratified_rows(players: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Every number of kept players comes equally often, as long as there are new masks of it; in pairs."""
    while True:
        for size in rng.permutation(np.arange(1, players)):
            row = np.zeros(players, dtype=bool)
            row[rng.choice(players, size, replace=False)] = True
            yield from (row, ~row)


def _orthogonal_rows(players: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of a Hadamard matrix, in pairs: in each block players are uncorrelated (Plackett and Burman 1946)."""
    order = 1 << players.bit_length()  # the smallest power of two above the number of players
    signs = hadamard(order) > 0
    while True:
        columns = 1 + rng.choice(order - 1, players, replace=False)
        flips = rng.random(players) < 0.5
        for row in rng.permutation(order):
            mask = signs[row, columns] ^ flips
            yield from (mask, ~mask)


# Called as rows(players, generator); endless.
DESIGNS: dict[str, Callable[[int, np.random.Generator], Iterator[np.ndarray]]] = {
    "random": _random_rows,
    "paired": _paired_rows,
    "stratified": _stratified_rows,
    "orthogonal": _orthogonal_rows,
}


def masks(players: int, design: str = "paired", seed: int = 0) -> Iterator[np.ndarray]:
    """Yield masks (players,) bool, none twice, True = kept: all kept, none kept, then as the design says.

    With few players all masks come in the end, in pairs of complements, whatever the design.

    Args:
        players: how many parts there are; up to `ENUMERATED` are few.
        design: key of `DESIGNS`.
        seed: the same gives the same masks; a longer run begins with those of a shorter one.

    Raises:
        UsageError: unknown design.
    """
    pick(DESIGNS, design, "design")
    everything, rng = np.ones(players, dtype=bool), np.random.default_rng(seed)
    yield everything
    if not players:
        return
    yield ~everything
    if players <= ENUMERATED:
        for number in rng.permutation(np.arange(1, 2 ** (players - 1))):
            row = (number >> np.arange(players)) % 2 == 1
            yield from (row, ~row)
        return
    used = {everything.tobytes(), (~everything).tobytes()}
    for row in DESIGNS[design](players, rng):
        if row.tobytes() not in used:
            used.add(row.tobytes())
            yield row
        if len(used) == 2**players:
            return


# -- The game.


class MaskedModel:
    """What a model says of a picture and its words when parts of them are hidden.

    Args:
        predictor: of the model.
        image: (3,size,size) in [0,1] as the predictor takes it; None where the model only reads.
        segments: (H,W) labels as of `segment`.
        tokens: of text; left out where the model neither reads them nor sees their boxes hidden.
        baseline: see `fill`.
        linked: a hidden unit is hidden on the picture as well: its boxes leave the superpixels.
        feather: standard deviation in pixels by which the edges of hidden segments are softened; sharp edges are
            seen by networks as something that is there (Grund Pihlgren and Främling 2024).

    Attributes:
        segments: (H,W) labels 0..S-1; those from S on are boxes of linked tokens.
        tokens: T of them.
        links: (T,) labels of the boxes of linked tokens, or -1.
        n_segments: S.
        n_tokens: T.
        areas: (S,) share of the picture that is each superpixel.
        classes: K names.

    Raises:
        UsageError: labels, baseline or feather that are no such.
        UserError: there is nothing that the model uses.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: Tensor | None = None,
        segments: np.ndarray | None = None,
        tokens: Sequence[Token] = (),
        baseline: str | Sequence[float] = "mean",
        linked: bool = False,
        feather: float = 2.0,
    ) -> None:
        uses = predictor.model.modalities
        self.predictor, self.classes = predictor, predictor.model.classes
        self.baseline, self.feather = baseline, feather
        self.image = image if "image" in uses else None
        linked = linked and self.image is not None
        self.tokens = tuple(tokens) if "text" in uses or linked else ()
        if self.image is None and not self.tokens:
            raise UserError(
                f"nothing to explain by: the model uses {' and '.join(uses)}; give it, or leave this photo out"
            )
        self.segments, self.links = None, np.full(len(self.tokens), -1)
        if self.image is not None:
            self.segments = segment(self.image, np.zeros(image.shape[1:], int) if segments is None else segments)
            if linked:
                self.segments, self.links = cut_out(self.segments, self.tokens)
            self.filling = fill(self.image, self.segments, baseline)
            self._soft = _feathered(self.segments, feather)
        if "text" not in uses:
            self.tokens = tuple(unit for unit, link in zip(self.tokens, self.links, strict=True) if link >= 0)
            self.links = self.links[self.links >= 0]
        self.n_tokens, self.n_segments = len(self.tokens), self._labels - int((self.links >= 0).sum())
        self._images: dict[bytes, Tensor] = {}
        self._texts: dict[str, Tensor] = {}

    @property
    def _labels(self) -> int:
        return 0 if self.segments is None else int(self.segments.max()) + 1

    @property
    def areas(self) -> np.ndarray:
        """Return (S,) the share of the picture that is each superpixel."""
        if self.segments is None:
            return np.zeros(0)
        return np.bincount(self.segments.ravel())[: self.n_segments] / self.segments.size

    def with_baseline(self, baseline: str | Sequence[float]) -> MaskedModel:
        """Return the same game with another filling of what is hidden; see `fill`."""
        other = object.__new__(MaskedModel)
        other.__dict__ = {**self.__dict__, "baseline": baseline, "_images": {}}
        if self.image is not None:
            other.filling = fill(self.image, self.segments, baseline)
        return other

    def texts(self, text_keep: np.ndarray) -> list[str]:
        """Return what is left to read of masks (N,T), N texts."""
        words = [unit.text for unit in self.tokens]
        return [" ".join(word for word, keep in zip(words, row, strict=True) if keep) for row in text_keep]

    def pictures(self, image_keep: np.ndarray, text_keep: np.ndarray | None = None) -> Tensor:
        """Return what is left to see of masks (N,S), and (N,T) where words are linked: (N,3,H,W)."""
        kept = self._on_picture(*self._checked(image_keep, text_keep))
        return self.filling + self._alpha(kept) * (self.image - self.filling)

    def logits(self, image_keep: np.ndarray, text_keep: np.ndarray | None = None) -> np.ndarray:
        """Return logits (N,K) of N masks.

        Args:
            image_keep: (N,S) bool, True = kept.
            text_keep: (N,T) bool; None keeps all.

        Returns:
            Float32. Where nothing is left that the model could answer by, all logits are 0: it knows nothing.

        Raises:
            UsageError: masks of another shape.
        """
        image_keep, text_keep = self._checked(image_keep, text_keep)
        image = None if self.image is None else self._encoded_images(self._on_picture(image_keep, text_keep))
        text = self._encoded_texts(self.texts(text_keep)) if "text" in self.predictor.model.modalities else None
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
        there = text.available.nonzero()[:, 0]
        if len(there):
            logits[there.cpu()] = model.classify(None, text.rows(there)).float().cpu()
        return logits

    def _checked(self, image_keep: np.ndarray, text_keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        image_keep = np.asarray(image_keep, dtype=bool)
        text_keep = (
            np.ones((len(image_keep), self.n_tokens), bool) if text_keep is None else np.asarray(text_keep, bool)
        )
        wanted = ((len(image_keep), self.n_segments), (len(image_keep), self.n_tokens))
        if (image_keep.shape, text_keep.shape) != wanted:
            raise UsageError(f"masks are {image_keep.shape} and {text_keep.shape}; give {wanted[0]} and {wanted[1]}")
        return image_keep, text_keep

    def _on_picture(self, image_keep: np.ndarray, text_keep: np.ndarray) -> np.ndarray:
        """Return which labels of `segments` are kept, (N,L)."""
        if self.n_segments == self._labels:
            return image_keep
        kept = np.ones((len(image_keep), self._labels), dtype=bool)
        boxes = self.links[self.links >= 0]
        kept[:, np.setdiff1d(np.arange(kept.shape[1]), boxes)] = image_keep
        kept[:, boxes] = text_keep[:, self.links >= 0]
        return kept

    def _alpha(self, kept: np.ndarray) -> Tensor:
        """Return masks (N,1,H,W) in [0,1] of kept labels (N,L)."""
        soft = torch.from_numpy(kept).to(self._soft) @ self._soft.flatten(1)
        return soft.clamp(0, 1).view(len(kept), 1, *self._soft.shape[1:])

    def _encoded_images(self, kept: np.ndarray) -> Features:
        keys = [row.tobytes() for row in kept]
        fresh = {key: row for key, row in zip(keys, kept, strict=True) if key not in self._images}
        rows = np.array(list(fresh.values()))
        for start in range(0, len(fresh), IMAGES_AT_ONCE):
            part = slice(start, start + IMAGES_AT_ONCE)
            seen = self.predictor.encode_perturbed(self.image, self._alpha(rows[part]), self.filling)
            self._images.update(zip(list(fresh)[part], seen.values, strict=True))
        values = torch.stack([self._images[key] for key in keys])
        return Features(values, torch.ones(len(keys), dtype=torch.bool, device=values.device))

    def _encoded_texts(self, texts: Sequence[str]) -> Features:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if fresh:
            read = self.predictor.encode_text([kept_apart(text) for text in fresh])
            self._texts.update({text: read.rows(slice(n, n + 1)) for n, text in enumerate(fresh)})
        return Features.joined([self._texts[text] for text in texts])


def _feathered(segments: np.ndarray, sigma: float) -> Tensor:
    """Return the pixels of each label, (L,H,W) in [0,1], with soft edges; they add up to 1 everywhere."""
    if sigma < 0:
        raise UsageError(f"feather={sigma} is negative; use 0 pixels or more")
    planes = torch.nn.functional.one_hot(torch.from_numpy(segments)).permute(2, 0, 1).float()
    if not sigma:
        return planes
    radius = min(int(3 * sigma) + 1, min(segments.shape) - 1)
    return gaussian_blur(planes, kernel_size=[2 * radius + 1] * 2, sigma=[float(sigma)] * 2)


def hide(image: Tensor, segments: np.ndarray, labels: Sequence[int], feather: float = 2.0) -> Tensor:
    """Return the picture (3,H,W) with some segments in their mean colour, as explanations hide them.

    Args:
        image: (3,H,W) in [0,1].
        segments: (H,W) labels 0..S-1.
        labels: which of them to hide.
        feather: see `MaskedModel`.
    """
    kept = 1 - _feathered(segments, feather)[list(labels)].sum(0, keepdim=True)
    return composite(image, kept[None], fill(image, segments, "mean"))[0].clamp(0, 1)


def as_predictor(model: ProductClassifier | Predictor, image: Tensor | None) -> Predictor:
    """Return a predictor for pictures like this one; one that is given stays as it is.

    Raises:
        UserError: the model looks at pictures, and this one is not square, or not as large as the predictor takes.
    """
    given = isinstance(model, Predictor)
    if image is None or "image" not in (model.model if given else model).modalities:
        return model if given else Predictor(model)
    shape = tuple(image.shape)
    side = model.size if given else shape[-1]
    if shape != (3, side, side):
        wanted = f"(3, {side}, {side})" if given else "a square one, (3, size, size), as a data set does"
        raise UserError(f"the image is {shape}; give {wanted}")
    return model if given else Predictor(model, side)


def targets(logits: np.ndarray, explained: Sequence[int], rivals: Sequence[int], target: str) -> np.ndarray:
    """Return what is explained of logits (N,K): (N,C) values of the `explained` classes, each beside its rival."""
    logits, explained, rivals = logits.astype(float), list(explained), np.array(rivals)
    if target.endswith("prob"):
        log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[:, explained]
        return {"log_prob": log_probs, "sqrt_prob": np.exp(log_probs / 2), "prob": np.exp(log_probs)}[target]
    own = logits[:, explained]
    return own - np.where(rivals >= 0, logits[:, rivals], 0) if target == "margin" else own
