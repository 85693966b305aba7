"""Local explanations: which superpixels and which words made a model choose this product and not its look-alike.

A linear surrogate is fitted to the model's answers to masked inputs, as in LIME (Ribeiro et al. 2016). Superpixels and
words are features of one regression. One set of evaluations serves all classes and every kernel.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from scipy.special import softmax
from torch import Tensor
from tqdm.auto import tqdm

from retailkit.cache import RESUMED, code_fingerprint, digest, open_file, replacing
from retailkit.config import UsageError, UserError, cache_dir, pick
from retailkit.data.table import ProductDataset, Sample, Word
from retailkit.explain.masking import (
    ENUMERATED,
    MaskedModel,
    Token,
    as_predictor,
    cut_out,
    masks,
    paired,
    segment,
    targets,
    tokens_of,
)
from retailkit.explain.surrogate import KERNELS, Samples, Surrogate, inner, roughness, words_share
from retailkit.inference import Predictor, in_range
from retailkit.models.classifier import ProductClassifier
from retailkit.training import fingerprint

PARTNERS = 4  # texts that each image mask is paired with; with the complements of such pairs they are 8
MOST = 100_000  # masks
ROUNDING = 100 * np.finfo(np.float32).eps  # logits of a network that differ by less, relative to their size, are equal


@dataclass(frozen=True)
class Options:
    """How an explanation is made.

    Attributes:
        segments: key of `masking.SEGMENTERS`, with `n_segments`, the wanted number; or labels (H,W).
        baseline: key of `masking.BASELINES`: what is shown where superpixels are hidden.
        feather: pixels by which the edges of hidden parts are softened.
        token: `word` or `line`: which piece of text is hidden as a whole.
        link_ocr: hide a word's box together with its text, as one feature; otherwise a hidden word is still visible.
        classes: `top1`, `top3`, ...: the most probable ones; or names or indices.
        contrast: for the target `margin`: `runner_up` (the most probable other class), a class (which is itself
            contrasted with its runner-up), or None.
        kernel: key of `KERNELS`: how evaluations are weighted.
        smooth: penalty on squared differences between superpixels that are near and of similar colour. It makes
            weights from few masks more stable (0.5 is strong), and small parts less distinct.
        budget: distinct masks of the image (of the text, where the model uses only text) to encode at most.
        target: one of `masking.TARGETS`: `margin` (logit of the class less that of its contrast), `prob` as lime has
            it, `log_prob` (closer to additive, but dominated by masks that lose the class), or `sqrt_prob`.
    """

    segments: str | np.ndarray = "slic"
    n_segments: int = 50
    baseline: str = "mean"
    feather: float = 2.0
    token: str = "word"
    link_ocr: bool = False
    classes: str | int | Sequence[str | int] = "top3"
    contrast: str | int | None = "runner_up"
    kernel: str = "lime"
    smooth: float = 0.0
    budget: int = 512
    target: str = "margin"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))
        pick(KERNELS, self.kernel, "kernel")
        if not 2 <= self.budget <= MOST:
            cure = f"use 2 to {MOST:,} masks; ten for each superpixel and word are good"
            raise UsageError(f"budget={self.budget}: {cure}")


def _plain(value: Any) -> Any:
    """Return numbers and tuples instead of arrays and lists; labels of superpixels stay an array."""
    if isinstance(value, str) or getattr(value, "ndim", 0) == 2:
        return value
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(map(_plain, value)) if np.iterable(value) else value


@dataclass(eq=False)
class LocalExplanation:
    """Why a model gives its answer for one photo.

    A weight says by how much the target grows when a feature is kept rather than hidden. C of the K `classes` are
    explained by S superpixels and T tokens.

    Attributes:
        explained: C indices of classes, in the order asked for; `top3` has the most probable one first.
        contrasts: C indices of the class that each is contrasted with; -1 without contrast.
        image: (3,H,W) in [0,1], or None for a model that uses only text.
        segments: (H,W) superpixels 0..S-1; labels from S on are boxes that are hidden together with their text.
        links: (T,) label of each token's boxes in `segments`, or -1.
        logits: (K,) of the untouched input.
        samples: the evaluations, and `options`, how they were made.
        image_weights: (C,S) signed; `text_weights` (C,T).
        image_intervals: (C,S,2) 95 %: where the weight would be with other masks; `text_intervals` (C,T,2). They have
            no width where all masks were evaluated, and are NaN where masks were too few.
        r2: (C,) R² of the surrogate on masks that it was not fitted to; NaN where masks were too few.
        share: (C,) share of the words in the sum of absolute weights, corrected for what noise adds to it, and its
            95 % `share_intervals` (C,2); NaN where no weight exceeds the noise.
        nothing: "" or why there is nothing to explain.
        masked_model: for refining and for judging the explanation; None after loading it from a file.
    """

    classes: list[str]
    explained: tuple[int, ...]
    contrasts: tuple[int, ...]
    image: Tensor | None
    segments: np.ndarray | None
    tokens: tuple[Token, ...]
    links: np.ndarray
    logits: np.ndarray
    samples: Samples
    options: Options
    image_weights: np.ndarray = None  # from here on, it is computed from the above
    text_weights: np.ndarray = None
    image_intervals: np.ndarray = None
    text_intervals: np.ndarray = None
    r2: np.ndarray = None
    share: np.ndarray = None
    share_intervals: np.ndarray = None
    nothing: str = ""
    masked_model: MaskedModel | None = field(default=None, repr=False)

    @property
    def evaluations(self) -> dict[str, int]:
        """Return how many masks of the image and of the text there were, and how many pairs of them."""
        image, text, pairs = self.samples.image_masks, self.samples.text_masks, self.samples.pairs
        return {"images": len(image) * bool(image.size), "texts": len(text) * bool(text.size), "pairs": len(pairs)}

    @property
    def probs(self) -> np.ndarray:
        """Return (K,) probabilities of the untouched input."""
        return softmax(self.logits)

    @property
    def question(self) -> str:
        """Return the question that the first row of weights answers."""
        contrast = f" rather than {self.classes[self.contrasts[0]]}" if self.contrasts[0] >= 0 else ""
        return f"why {self.classes[self.explained[0]]}{contrast}"

    def verdict(self, row: int = 0) -> str:
        """Return "" where a row of weights may be shown, or else a sentence that says why not and what to do."""
        if self.nothing:
            return f"There is nothing to explain: {self.nothing}."
        if self.r2[row] >= 0 or all(drawn.complete for drawn in self.samples.drawn()):
            return ""
        why = "It is not known how well this explanation fits the model: there are too few masks."
        if not math.isnan(self.r2[row]):
            why = "This photo cannot be explained so: on masks left out of the fit, it predicts the model worse "
            why += f"than a constant (R² {self.r2[row]:.2f})."
        return f"{why} Raise the budget."

    def row(self, label: int | str) -> int:
        """Return the row of weights that explains a class; raise UsageError if it was not explained."""
        index = _class(label, self.classes)
        if index not in self.explained:
            known = ", ".join(self.classes[i] for i in self.explained)
            raise UsageError(f"{self.classes[index]!r} was not explained, only {known}; pass classes=[...]")
        return self.explained.index(index)

    def heat(self, row: int = 0) -> np.ndarray:
        """Return (H,W) signed: at each pixel the weight of what hides it; a single 0 for a model of texts."""
        if self.segments is None:
            return np.zeros((1, 1))
        return np.concatenate([self.image_weights[row], self.text_weights[row][self.links >= 0]])[self.segments]

    def words(self, row: int = 0) -> pd.DataFrame:
        """Return the tokens by weight: `text`, `weight`, `low`, `high`."""
        low, high = self.text_intervals[row].T
        table = {"text": [t.text for t in self.tokens], "weight": self.text_weights[row], "low": low, "high": high}
        return pd.DataFrame(table).sort_values("weight", ascending=False, kind="stable", ignore_index=True)

    def with_kernel(self, kernel: str) -> LocalExplanation:
        """Return what another kernel makes of the same evaluations."""
        return self._fitted(self.samples, replace(self.options, kernel=kernel))

    def refine(self, budget: int, model: ProductClassifier | Predictor | None = None) -> LocalExplanation:
        """Return an explanation from `budget` further masks besides those that were evaluated already.

        `model` is needed only where the explanation was loaded from a file.
        """
        if budget < 0:
            raise UsageError(f"budget={budget} is negative; give the number of further masks")
        options, masked = replace(self.options, budget=self.options.budget + budget), self.rebuilt(model)
        return replace(self._fitted(_evaluated(masked, self.samples, options), options), masked_model=masked)

    def rebuilt(self, model: ProductClassifier | Predictor | None = None) -> MaskedModel:
        """Return the masked model, made again where the explanation was loaded from a file; see `refine`."""
        if self.masked_model is not None:
            return self.masked_model
        if model is None:
            raise UsageError("this explanation was loaded from a file; give its model, as in refine(budget, model)")
        predictor = as_predictor(model, self.image)
        if list(predictor.model.classes) != self.classes:
            raise UsageError("this model has other classes than the explained one; give that one")
        baseline, feather = self.options.baseline, self.options.feather
        return MaskedModel(predictor, self.image, self.segments, self.tokens, self.links, baseline, feather)

    def save(self, path: str | Path) -> None:
        """Write everything but the model to one file (.safetensors), the image in 8 bits per channel."""
        arrays = {name: attrgetter(name)(self) for name in SHAPES}
        if self.image is not None:
            arrays |= {"image": (self.image * 255).round().byte().numpy(), "segments": self.segments}
        facts = {name: getattr(self, name) for name in ("classes", "explained", "contrasts", "nothing")}
        facts |= {"tokens": [[asdict(word) for word in token.words] for token in self.tokens]}
        facts |= {"options": asdict(self.options)}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        text = json.dumps(facts, sort_keys=True, default=_plain)
        with replacing(path) as draft:
            safetensors.torch.save_file(tensors, draft, metadata={"explanation": text})

    @staticmethod
    def load(path: str | Path) -> LocalExplanation:
        """Read what `save` wrote; raise UserError for no such file, or one that is damaged, older or something else."""
        open_file(path).close()
        try:
            with safetensors.safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {})["explanation"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            return _unpacked(facts, arrays)
        except NOT_OURS as error:
            raise UserError(f"{path}: no explanation, or a damaged or older file ({error}); make it again") from None

    def _fitted(self, samples: Samples, options: Options) -> LocalExplanation:
        """Return the explanation that the surrogate of other samples, or with other options, gives."""
        count, split, tokens = len(self.explained), samples.image_masks.shape[1], samples.text_masks.shape[1]
        nothing = _nothing(samples, self.explained, self.contrasts, options.target)
        weights, intervals = np.zeros((count, split + tokens)), np.zeros((count, split + tokens, 2))
        r2, share, share_intervals = np.full(count, math.nan), np.full(count, math.nan), np.full((count, 2), math.nan)
        if not nothing:
            kernel = KERNELS[options.kernel](samples.kept)
            penalty = np.zeros((split + tokens, split + tokens))
            if options.smooth and split:
                strength = options.smooth * kernel[inner(samples.kept)].sum()
                penalty[:split, :split] = strength * roughness(self.image, self.segments, split)
            values = targets(samples.logits, self.explained, self.contrasts, options.target)
            surrogate = Surrogate(samples, values, kernel, penalty)
            draws = surrogate.bootstrap(options.seed)
            weights, r2, intervals = surrogate.weights, surrogate.held_out(), surrogate.intervals(draws)
            share, share_intervals = words_share(weights, draws, split)
        found = {"r2": r2, "share": share, "share_intervals": share_intervals, "nothing": nothing}
        for kind, part in (("image", slice(split)), ("text", slice(split, None))):
            found |= {f"{kind}_weights": weights[:, part], f"{kind}_intervals": intervals[:, part]}
        return replace(self, samples=samples, options=options, **found)


def _nothing(samples: Samples, explained: Sequence[int], contrasts: Sequence[int], target: str) -> str:
    """Return why there is nothing to explain, or ""."""
    if not len(samples.pairs):
        return "there is only one part to hide"
    # As logarithms: probabilities may be too small to tell.
    values = targets(samples.logits, explained, contrasts, "margin" if target == "margin" else "log_prob")
    same = np.ptp(values, axis=0).max() <= ROUNDING * np.abs(samples.logits).max()
    return "the model says the same whatever is hidden" if same else ""


# -- Files.


# Shapes of the arrays in a file; a letter stands for the same number everywhere.
SHAPES = {
    "logits": "K", "links": "T", "r2": "C", "share": "C", "share_intervals": "C2",
    "image_weights": "CS", "image_intervals": "CS2", "text_weights": "CT", "text_intervals": "CT2",
    "samples.image_masks": "US", "samples.text_masks": "VT", "samples.pairs": "N2", "samples.logits": "NK",
}  # fmt: skip
IMAGE_SHAPES = {"image": "3HW", "segments": "HW"}  # only where the model uses images
NOT_OURS = (safetensors.SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError)


def _unpacked(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> LocalExplanation:
    if wrong := _misfit(facts, arrays):
        raise ValueError(f"{wrong} does not fit the rest")
    words = [tuple(Word(**{**word, "box": tuple(word["box"])}) for word in token) for token in facts["tokens"]]
    samples = Samples(*(arrays.pop(name) for name in SHAPES if name.startswith("samples.")))
    image = torch.from_numpy(arrays.pop("image")).float() / 255 if "image" in arrays else None
    found = {name: tuple(facts[name]) for name in ("explained", "contrasts")} | {"segments": None} | arrays
    found |= {"tokens": tuple(Token(" ".join(word.text for word in token), token) for token in words)}
    found |= {"options": Options(**facts["options"]), "samples": samples, "image": image}
    return LocalExplanation(classes=facts["classes"], nothing=facts["nothing"], **found)


def _misfit(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """Return the name of a part whose shape or numbers do not fit the others, or ""."""
    known, contrasts, explained = range(len(facts["classes"])), set(facts["contrasts"]), set(facts["explained"])
    sizes = {"K": len(known), "C": len(facts["explained"]), "T": len(facts["tokens"]), "2": 2, "3": 3}
    for name, letters in (SHAPES | IMAGE_SHAPES if "image" in arrays else SHAPES).items():
        shape = arrays[name].shape
        if len(shape) != len(letters) or any(sizes.setdefault(k, n) != n for k, n in zip(letters, shape, strict=True)):
            return name
    pairs, segments = arrays["samples.pairs"], arrays.get("segments")
    labels = sizes["S"] + np.count_nonzero(arrays["links"] >= 0)
    fits = {
        "pairs": bool(((pairs >= 0) & (pairs < [sizes["U"], sizes["V"]])).all()),
        "explained": len(facts["contrasts"]) == sizes["C"] > 0 and explained <= set(known),
        "contrasts": contrasts <= {-1, *known},
        "segments": segments is None or (segments.min(), segments.max()) == (0, labels - 1),
    }
    return next((name for name, fit in fits.items() if not fit), "")


# -- Explaining one photo.


def explain(
    model: ProductClassifier | Predictor,
    image: Tensor | None,
    words: Sequence[Word] | str | None = None,
    options: Options | None = None,
    *,
    progress: bool = True,
    **changes: Any,
) -> LocalExplanation:
    """Explain a model's answer for one photo and its words.

    Args:
        model: or a predictor of it, which saves compiling the encoder again for every photo.
        image: (3,size,size) in [0,1]; None for a model that uses only text.
        words: OCR words of the photo, or a plain text.
        options: None takes the defaults.
        progress: show a bar if it takes longer than two seconds.
        **changes: of single options, as in `explain(model, image, words, budget=256)`.

    Raises:
        UserError: an image of another shape, or nothing that the model uses.
    """
    options = replace(options or Options(), **changes)
    image = None if image is None else in_range(torch.as_tensor(image).detach().cpu(), "the image")
    predictor, tokens = as_predictor(model, image), tokens_of(words, options.token)
    segments = links = None
    if image is not None and "image" in predictor.model.modalities:
        segments = segment(image, options.segments, options.n_segments)
        if options.link_ocr:
            segments, links = cut_out(segments, tokens)
    if not isinstance(options.segments, str):
        options = replace(options, segments="given")
    masked = MaskedModel(predictor, image, segments, tokens, links, options.baseline, options.feather)
    logits = masked.logits(np.ones((1, masked.n_segments), bool))[0]
    explained = _which(options.classes, logits, masked.classes)
    contrasts = tuple(_contrast(options.contrast, index, logits, masked.classes) for index in explained)
    samples = _evaluated(masked, None, options, progress)
    given = {name: getattr(masked, name) for name in ("image", "segments", "tokens", "links")}
    given |= {"logits": logits, "samples": samples, "options": options, "masked_model": masked}
    return LocalExplanation(list(masked.classes), explained, contrasts, **given)._fitted(samples, options)


def _which(classes: str | int | Sequence[str | int], logits: np.ndarray, names: Sequence[str]) -> tuple[int, ...]:
    if isinstance(classes, str) and classes not in names and (top := re.fullmatch(r"top([1-9]\d*)", classes)):
        return tuple(int(i) for i in np.argsort(-logits, kind="stable")[: int(top[1])])
    chosen = tuple(_class(label, names) for label in ([classes] if isinstance(classes, str | int) else classes))
    if not chosen:
        raise UsageError("classes is empty; name at least one, or use 'top3'")
    return chosen


def _class(label: str | int, names: Sequence[str]) -> int:
    if isinstance(label, str):
        return list(names).index(pick(names, label, "class"))
    if not 0 <= label < len(names):
        raise UsageError(f"class {label} is out of range; the model has {len(names)}: 0 to {len(names) - 1}")
    return int(label)


def _contrast(contrast: str | int | None, index: int, logits: np.ndarray, names: Sequence[str]) -> int:
    if contrast is None or len(names) < 2:
        return -1
    runner_up = next(int(i) for i in np.argsort(-logits, kind="stable") if i != index)
    chosen = runner_up if contrast == "runner_up" else _class(contrast, names)
    return runner_up if chosen == index else chosen


# -- Evaluating masks.


def _evaluated(masked: MaskedModel, old: Samples | None, options: Options, progress: bool = False) -> Samples:
    """Return samples grown to `options.budget` masks of the image, or of the text where there is no image."""
    segments, tokens, seed = masked.n_segments, masked.n_tokens, options.seed
    if old is None:
        old = Samples(*np.zeros((2, 0, 0), bool), np.zeros((0, 2), int), np.zeros((0, len(masked.classes)), np.float32))
    before, budget = (len(old.image_masks), len(old.text_masks)), options.budget
    if segments and tokens and not len(masked.links[masked.links >= 0]):
        image_masks = masks(segments, budget, seed)
        text_masks = masks(tokens, min(budget, budget * tokens // segments), seed + 1)  # as many masks per feature
        every = segments + tokens <= ENUMERATED
        pairs = paired(before, (len(image_masks), len(text_masks)), 2**ENUMERATED if every else PARTNERS, seed)
    else:  # one kind of feature, or words that are hidden together with superpixels
        both = masks(segments + tokens, budget, seed)
        image_masks, text_masks = both[:, :segments], both[:, segments:]
        pairs = np.repeat(np.arange(before[0], len(both))[:, None], 2, 1)
    if not len(pairs) or segments + tokens < 2:
        return replace(old, image_masks=image_masks, text_masks=text_masks)
    logits = masked.logits(image_masks[pairs[:, 0]], text_masks[pairs[:, 1]], progress)
    return Samples(image_masks, text_masks, np.concatenate([old.pairs, pairs]), np.concatenate([old.logits, logits]))


# -- Explaining many photos.


def explain_dataset(
    model: ProductClassifier | Predictor,
    data: ProductDataset,
    cache: str | Path | None = None,
    *,
    progress: bool = True,
    **options: Any,
) -> list[LocalExplanation]:
    """Explain every photo of a split, in order. Each result is written to disk, so that an interrupted run continues.

    A file in the folder `cache` (None takes the cache folder) is used again for the same photo, words, model, `Options`
    and sources of this module; such an explanation has no `masked_model`.
    """
    predictor = as_predictor(model, data[0].image if len(data) else None)
    options = Options(**options)
    folder, key = Path(cache) if cache else cache_dir("explanations"), deciding(predictor, options)
    found, kept = [], 0
    for position in tqdm(range(len(data)), desc="explain", delay=2, mininterval=2, disable=not progress):
        sample = data[position]
        pixels = (sample.image * 255).round().byte()
        path = folder / f"{digest(key, pixels, [asdict(word) for word in sample.words] or sample.text)}.safetensors"
        try:
            kept += path.exists()
            found.append(explain_once(predictor, sample, path, options))
        except UserError as error:
            raise type(error)(f"photo {position}: {error}") from None
    if 0 < kept < len(data):
        RESUMED.append(f"{kept} of {len(data)} explanations were there already")
    return found


def deciding(predictor: Predictor, options: Options) -> str:
    """Return what stands for all that decides explanations but the photo and its words."""
    return digest(fingerprint(predictor.model), code_fingerprint(__name__), asdict(options))


def explain_once(predictor: Predictor, sample: Sample, path: Path, options: Options) -> LocalExplanation:
    """Explain a photo, unless the file `path` holds the explanation already; a damaged file is made again."""
    if kept := kept_explanation(path):
        return kept
    found = explain(predictor, sample.image, sample.words or sample.text, options, progress=False)
    found.save(path)
    return found


def kept_explanation(path: Path) -> LocalExplanation | None:
    """Return the explanation in a file, None where there is no file; warn of a damaged one."""
    try:
        return LocalExplanation.load(path) if path.exists() else None
    except UserError as error:
        warnings.warn(f"{error}; it is made again now", stacklevel=3)
