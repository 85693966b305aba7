"""Local explanations: which superpixels and which words made a model say this product and not its twin.

A linear surrogate is fitted to what the model says of masked inputs, as in LIME (Ribeiro et al. 2016), with image and
words in one regression, so that their weights share one scale. Three things make it cheap: `MaskedModel` encodes each
distinct mask once, all classes come from one set of evaluations, and masks come in pairs of complements. One
evaluation serves every kernel: LIME's, KernelSHAP's (Lundberg and Lee 2017), or none.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom
from skimage import color as skimage_color
from torch import Tensor
from tqdm import tqdm

from retailkit.cache import code_fingerprint, digest, replacing
from retailkit.config import UsageError, UserError, cache_dir, pick
from retailkit.data.table import ProductDataset, Sample, Word
from retailkit.explain.masking import (
    BASELINES,
    DESIGNS,
    ENUMERATED,
    MaskedModel,
    Segmenter,
    Token,
    as_predictor,
    cut_out,
    masks,
    segment,
    targets,
    tokens_of,
)
from retailkit.inference import Predictor
from retailkit.models.classifier import ProductClassifier
from retailkit.training import fingerprint

TARGETS = ("margin", "logit", "log_prob", "sqrt_prob", "prob")
KERNEL_WIDTH = 0.25  # of LIME, on cosine distances
PAIRS = 8  # texts that each masked picture is paired with, unless players are few
FOLDS = 5  # of the held-out R²
DRAWS = 1000  # of weights within their errors, for the words' share
SHOWN = 5  # interactions kept a class
SAME = 1e-6  # logits that differ by less are one value
NEAR, ALIKE = 0.1, 15.0  # of superpixels: of the picture's longer side, and of CIELAB
SLACK = 1e-9  # what a mask that settles a coefficient alone leaves to others
ENDS = 1e6  # weight of the untouched and the empty input in KernelSHAP: their values are met exactly


@dataclass(frozen=True)
class Options:
    """How an explanation is made; see `explain`."""

    baseline: str | tuple[float, float, float] = "mean"
    link_ocr: bool = False
    feather: float = 2.0
    classes: str | tuple[str | int, ...] = "top3"
    contrast: str | int | None = "runner_up"
    design: str = "paired"
    kernel: str = "lime"
    ridge: float = 0.0
    smooth: float = 0.0
    target: str = "margin"
    tolerance: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """What has been evaluated.

    Attributes:
        image_masks: (U,S) bool, True = kept; complements are neighbours, from row 0 on, unless the design has none.
        text_masks: (V,T) bool, likewise. Where words hide their boxes, too, row n of both is one mask.
        pairs: (N,2) int, rows of the two that were fused; none twice.
        logits: (N,K) float32 of each pair.
    """

    image_masks: np.ndarray
    text_masks: np.ndarray
    pairs: np.ndarray
    logits: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """Return (N,S+T) bool: which players each evaluation kept, superpixels first."""
        return np.concatenate([self.image_masks[self.pairs[:, 0]], self.text_masks[self.pairs[:, 1]]], 1)


@dataclass(eq=False)
class LocalExplanation:
    """Why a model says what it says of one photo.

    Weights say by how much the target grows when a part is kept rather than hidden. C classes are explained, by S
    superpixels and T units of text.

    Attributes:
        classes: all K names of the model.
        explained: C indices of classes, in the order asked for; `top3` has the most probable one first.
        contrasts: C indices of the class that each is contrasted with; -1 without contrast.
        image: (3,H,W) in [0,1], or None for a model that only reads.
        segments: (H,W) superpixels 0..S-1; labels from S on are boxes of words that are hidden with their text.
        tokens: T pieces of text.
        links: (T,) label of each unit's boxes in `segments`, or -1.
        logits: (K,) of the untouched input.
        image_weights: (C,S) signed.
        text_weights: (C,T) signed.
        image_intervals: (C,S,2) 95 %: where the weight would be with other masks. Empty where all masks were
            evaluated, NaN where they were too few to say.
        text_intervals: (C,T,2).
        r2: (C,) R² of the surrogate on masks that it was not fitted to; NaN where that cannot be said.
        share: (C,) share of the words in all absolute weight, corrected for what noise adds; NaN where nothing weighs
            more than noise.
        share_intervals: (C,2) 95 %, of weights drawn within their errors.
        interactions: pairs of a superpixel and a unit whose joint effect is more than their sum: columns `label`,
            `segment`, `unit`, `weight`, and `z`, the weight by its standard error; the strongest of each class.
        samples: the evaluations.
        options: how they were made.
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
    image_weights: np.ndarray
    text_weights: np.ndarray
    image_intervals: np.ndarray
    text_intervals: np.ndarray
    r2: np.ndarray
    share: np.ndarray
    share_intervals: np.ndarray
    interactions: pd.DataFrame
    samples: Samples
    options: Options
    nothing: str = ""
    masked_model: MaskedModel | None = field(default=None, repr=False, compare=False)

    @property
    def evaluations(self) -> dict[str, int]:
        """Return how many masks of the picture and of the text there were, and how many pairs of them."""
        counts = {"images": self.samples.image_masks, "texts": self.samples.text_masks}
        return {name: len(masks) * (masks.shape[1] > 0) for name, masks in counts.items()} | {
            "pairs": len(self.samples.pairs)
        }

    @property
    def probs(self) -> np.ndarray:
        """Return (K,) probabilities of the untouched input."""
        return np.exp(self.logits - np.logaddexp.reduce(self.logits))

    @property
    def question(self) -> str:
        """Return what the first row of weights answers."""
        rival = f" and not {self.classes[self.contrasts[0]]}" if self.contrasts[0] >= 0 else ""
        return f"why {self.classes[self.explained[0]]}{rival}"

    def row(self, label: int | str) -> int:
        """Return the row of weights that explains a class.

        Raises:
            UsageError: that class was not explained.
        """
        index = _class(label, self.classes)
        if index not in self.explained:
            there = ", ".join(self.classes[i] for i in self.explained)
            raise UsageError(f"{self.classes[index]!r} was not explained, only {there}; pass classes=[...]")
        return self.explained.index(index)

    def heat(self, row: int = 0) -> np.ndarray:
        """Return (H,W) signed: at each pixel the weight of what hides it. Zeros for a model that only reads."""
        if self.segments is None:
            return np.zeros((1, 1))
        weights = np.zeros(int(self.segments.max()) + 1)
        linked = self.links >= 0
        weights[np.setdiff1d(np.arange(len(weights)), self.links[linked])] = self.image_weights[row]
        weights[self.links[linked]] = self.text_weights[row][linked]
        return weights[self.segments]

    def words(self, row: int = 0) -> pd.DataFrame:
        """Return the units of text by weight: `text`, `weight`, `low`, `high`."""
        low, high = self.text_intervals[row].T if self.tokens else ([], [])
        table = {"text": [u.text for u in self.tokens], "weight": self.text_weights[row], "low": low, "high": high}
        return pd.DataFrame(table).sort_values("weight", ascending=False, kind="stable", ignore_index=True)

    def with_kernel(self, kernel: str, target: str | None = None) -> LocalExplanation:
        """Return what another kernel (or target) makes of the same evaluations; see `explain`."""
        options = replace(self.options, kernel=kernel, target=target or self.options.target)
        return _explained(self._frame(), self.samples, _checked(options))

    def refine(self, budget: int, model: ProductClassifier | Predictor | None = None) -> LocalExplanation:
        """Return an explanation from `budget` further masks besides those that were evaluated already.

        Args:
            budget: as of `explain`.
            model: needed only where the explanation was loaded from a file.

        Raises:
            UsageError: a loaded explanation without its model, or with one of other classes; a negative budget.
        """
        if budget < 0:
            raise UsageError(f"budget={budget} is negative; give the number of further masks")
        frame = {**self._frame(), "masked_model": self.rebuilt(model)}
        *_, last = _grow(frame, self.samples, self.options, _spent(self.samples) + budget)
        return last

    def save(self, path: str | Path) -> None:
        """Write everything but the model to one file (.safetensors), the picture in 8 bits a channel.

        The same explanation gives the same bytes.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"samples.{name}": getattr(self.samples, name) for name in _SAMPLES}
        if self.image is not None:
            arrays |= {"image": (self.image * 255).round().byte().numpy(), "segments": self.segments}
        facts = {
            "classes": self.classes,
            "explained": self.explained,
            "contrasts": self.contrasts,
            "tokens": [[asdict(word) for word in token.words] for token in self.tokens],
            "interactions": self.interactions.to_dict("list"),
            "options": asdict(self.options),
            "nothing": self.nothing,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        text = json.dumps(facts, sort_keys=True, default=_plain)
        with replacing(path) as draft:
            safetensors.torch.save_file(tensors, draft, metadata={"explanation": text})

    @staticmethod
    def load(path: str | Path) -> LocalExplanation:
        """Read what `save` wrote.

        Raises:
            UserError: no such file, or not such a file.
        """
        try:
            with safetensors.safe_open(path, "np") as file:
                facts = json.loads((file.metadata() or {})["explanation"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            return _unpacked(facts, arrays)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; save an explanation there first") from None
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no explanation, or a damaged file ({error}); make it again") from None

    def _frame(self) -> dict[str, Any]:
        """Return what does not depend on the samples, under the names of this class."""
        names = ("classes", "explained", "contrasts", "image", "segments", "tokens", "links", "logits", "masked_model")
        return {name: getattr(self, name) for name in names}

    def rebuilt(self, model: ProductClassifier | Predictor | None = None) -> MaskedModel:
        """Return the masked model, made again where the explanation was loaded from a file.

        Args:
            model: of the explanation; needed only then.

        Raises:
            UsageError: a loaded explanation without its model, or with one of other classes.
        """
        if model is None and self.masked_model is None:
            raise UsageError("this explanation was loaded from a file; give its model, as in refine(budget, model)")
        if self.masked_model is not None:
            return self.masked_model
        predictor = as_predictor(model, self.image)
        if list(predictor.model.classes) != self.classes:
            raise UsageError("this model has other classes than the explained one; give that one")
        options = self.options
        game = MaskedModel(predictor, self.image, self.segments, self.tokens, options.baseline, feather=options.feather)
        # The boxes of linked units are labels already.
        game.tokens, game.links = self.tokens, self.links
        game.n_segments, game.n_tokens = self.image_weights.shape[1], len(self.tokens)
        return game


_ARRAYS = (
    "image_weights",
    "text_weights",
    "image_intervals",
    "text_intervals",
    "r2",
    "share",
    "share_intervals",
    "logits",
    "links",
)
_INTERACTION = {"label": object, "segment": int, "unit": int, "weight": float, "z": float}
_FORMER = {"rivals": "contrasts", "units": "tokens"}  # names in older files
_SAMPLES = ("image_masks", "text_masks", "pairs", "logits")


def _unpacked(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> LocalExplanation:
    facts = {_FORMER.get(name, name): value for name, value in facts.items()}
    words = [tuple(Word(**{**word, "box": tuple(word["box"])}) for word in token) for token in facts["tokens"]]
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in facts["options"].items()}
    image = torch.from_numpy(arrays["image"]).float() / 255 if "image" in arrays else None
    return LocalExplanation(
        classes=facts["classes"],
        explained=tuple(facts["explained"]),
        contrasts=tuple(facts["contrasts"]),
        image=image,
        segments=arrays.get("segments"),
        tokens=tuple(Token(" ".join(word.text for word in unit), unit) for unit in words),
        interactions=pd.DataFrame(facts["interactions"], columns=list(_INTERACTION)).astype(_INTERACTION),
        samples=Samples(*(arrays[f"samples.{name}"] for name in _SAMPLES)),
        options=Options(**options),
        nothing=facts["nothing"],
        **{name: arrays[name] for name in _ARRAYS},
    )


# -- Making one.


def explain(
    model: ProductClassifier | Predictor,
    image: Tensor | None,
    words: Sequence[Word] | str | None = None,
    *,
    segments: str | np.ndarray | Segmenter = "slic",
    n_segments: int = 50,
    word_segments: bool = False,
    baseline: str | tuple[float, float, float] = "mean",
    feather: float = 2.0,
    token: str = "word",
    link_ocr: bool = False,
    classes: str | int | Sequence[str | int] = "top3",
    contrast: str | int | None = "runner_up",
    design: str = "paired",
    kernel: str = "lime",
    ridge: float = 0.0,
    smooth: float = 0.0,
    budget: int = 512,
    target: str = "margin",
    tolerance: float = 0.0,
    seed: int = 0,
    progress: bool = True,
) -> LocalExplanation:
    """Explain what a model says of one photo and its words.

    Args:
        model: of any kind; or a predictor of it, which saves choosing the fastest way again for every photo.
        image: (3,size,size) in [0,1]; None for a model that only reads.
        words: what was read on the photo; what the model does not read is left out.
        segments: key of `masking.SEGMENTERS`, a function (image (H,W,3), count) -> labels, or labels (H,W).
        n_segments: superpixels wished for.
        word_segments: OCR boxes become superpixels of their own.
        baseline: what hidden superpixels show: key of `masking.BASELINES`, or a colour (r, g, b).
        feather: pixels by which the edges of what is hidden are softened.
        token: `word` or `line`: what of the text is hidden as a whole.
        link_ocr: hide a word's box with its text, as one part; otherwise a hidden word is still seen.
        classes: `top1`, `top3`, ...: as many of the most probable ones; or names or indices.
        contrast: `runner_up` (the most probable other class), a class (that class itself has its runner-up), or
            None. It matters to the target `margin`.
        design: key of `masking.DESIGNS`: how masks are drawn.
        kernel: key of `KERNELS`: how evaluations are weighted.
        ridge: penalty on squared weights; lime has 1. 0 is least squares.
        smooth: penalty on squared differences of superpixels that are near and of one colour: they share strength.
            Weights from few masks get steadier (0.5 is much), and small parts less distinct.
        budget: distinct masks of the picture (of the text, for a model that only reads) to encode at most.
        target: `margin` (logit of the class less that of its rival), `logit`, `prob` as lime has it, `log_prob` (adds
            up better over parts, so that fewer masks do, but also tells what matters only where the class is lost
            already), or `sqrt_prob` (between these two).
        tolerance: stop before the budget is spent once no standard error exceeds this share of the range of weights.
        seed: the same gives the same explanation.
        progress: show a bar if it takes longer than two seconds.

    Raises:
        UsageError: an unknown option or class, or labels of another size.
        UserError: an image that is no such, or nothing that the model uses.
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "progress")}
    bar = tqdm(total=budget, desc="explain", delay=2, mininterval=2, leave=False, disable=not progress)
    with bar:
        for explanation in steps(model, **given):
            bar.update(_spent(explanation.samples) - bar.n)
    return explanation


def steps(
    model: ProductClassifier | Predictor,
    image: Tensor | None,
    words: Sequence[Word] | str | None = None,
    *,
    segments: str | np.ndarray | Segmenter = "slic",
    n_segments: int = 50,
    word_segments: bool = False,
    token: str = "word",
    budget: int = 512,
    **options: Any,
) -> Iterator[LocalExplanation]:
    """Yield better and better explanations of one photo, by the arguments of `explain`, which returns the last."""
    chosen = _checked(Options(**{name: _plain(value) for name, value in options.items()}))
    if budget < 2:
        raise UsageError(f"budget={budget} is too small; use at least 2, better ten for each part")
    predictor, units = as_predictor(model, image), tokens_of(words, token)
    uses_image = image is not None and "image" in predictor.model.modalities
    labels = segment(image, segments, n_segments) if uses_image else None
    if word_segments and uses_image and not chosen.link_ocr:
        labels, _ = cut_out(labels, units)
    game = MaskedModel(predictor, image, labels, units, chosen.baseline, chosen.link_ocr, chosen.feather)
    yield from _grow(_framed(game, chosen), _nothing_yet(game), chosen, budget)


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers and tuples instead of arrays."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, str) or not np.iterable(value) else tuple(_plain(one) for one in value)


def _checked(options: Options) -> Options:
    if isinstance(options.baseline, str):
        pick(BASELINES, options.baseline, "baseline")
    pick(DESIGNS, options.design, "design")
    pick(KERNELS, options.kernel, "kernel")
    pick(TARGETS, options.target, "target")
    for name in ("ridge", "smooth", "tolerance", "feather"):
        if getattr(options, name) < 0:
            raise UsageError(f"{name}={getattr(options, name)} is negative; use 0 or more")
    return options


def _nothing_yet(game: MaskedModel) -> Samples:
    shapes = (0, game.n_segments), (0, game.n_tokens)
    pairs, logits = np.zeros((0, 2), int), np.zeros((0, len(game.classes)), np.float32)
    return Samples(*(np.zeros(shape, bool) for shape in shapes), pairs, logits)


def _grow(frame: dict[str, Any], samples: Samples, options: Options, budget: int) -> Iterator[LocalExplanation]:
    """Yield explanations while evaluating further masks, until there are `budget` or no more of them."""
    game = frame["masked_model"]
    if game.n_segments + game.n_tokens < 2:
        yield _explained(frame, samples, options)
        return
    spent = _spent(samples)
    chunk = max(32, 2 * (game.n_segments + game.n_tokens), (budget - spent) // 8)
    for goal in [*range(spent + chunk, budget, chunk), budget]:
        count = len(samples.pairs)
        samples = _evaluated(game, samples, options, goal)
        explanation = _explained(frame, samples, options)
        yield explanation
        if explanation.nothing or len(samples.pairs) == count or _converged(explanation):
            return


def _spent(samples: Samples) -> int:
    """Return how much of a budget has been spent."""
    images, (texts, units) = len(samples.image_masks), samples.text_masks.shape
    segments = samples.image_masks.shape[1]
    if _together(samples) or images < 2**segments:
        return images
    return max(images, math.ceil(texts * max(1, segments / units)))


def _together(samples: Samples) -> bool:
    return np.array_equal(samples.pairs[:, 0], samples.pairs[:, 1])


def _evaluated(game: MaskedModel, old: Samples, options: Options, goal: int) -> Samples:
    """Return samples grown to `goal` masks of the picture, or of the text where there is no picture."""
    goal = max(goal, len(old.image_masks))
    if game.n_segments and game.n_tokens and not (game.links >= 0).any():
        image_masks = _masks(game.n_segments, options, options.seed, goal)
        texts = max(2, min(goal, goal * game.n_tokens // game.n_segments))  # as many masks a part as of the picture
        text_masks = _masks(game.n_tokens, options, options.seed + 1, texts)
        text_masks = text_masks if len(text_masks) > len(old.text_masks) else old.text_masks
        each = PAIRS if game.n_segments + game.n_tokens > ENUMERATED else 2**ENUMERATED
        counts = len(old.image_masks), len(image_masks), len(old.text_masks), len(text_masks)
        pairs = _paired(*counts, each, options.seed)
    else:  # one kind of part, or parts of both kinds that hang together
        both = _masks(game.n_segments + game.n_tokens, options, options.seed, goal)
        image_masks, text_masks = both[:, : game.n_segments], both[:, game.n_segments :]
        pairs = np.repeat(np.arange(len(old.pairs), len(both))[:, None], 2, 1)
    logits = game.logits(image_masks[pairs[:, 0]], text_masks[pairs[:, 1]]) if len(pairs) else old.logits[:0]
    return Samples(image_masks, text_masks, np.concatenate([old.pairs, pairs]), np.concatenate([old.logits, logits]))


def _masks(players: int, options: Options, seed: int, count: int) -> np.ndarray:
    return np.array(list(islice(masks(players, options.design, seed), count)), dtype=bool).reshape(-1, players)


def _paired(images_before: int, images: int, texts_before: int, texts: int, each: int, seed: int) -> np.ndarray:
    """Pair each new image mask with `each` texts, each new text mask with `each` images, (N,2), no pair twice."""
    rng = np.random.default_rng([seed, images_before, texts_before])
    pairs = {(0, 0), (1, 1)} if images_before == 0 else set()  # all kept, none kept
    for image in range(images_before, images):
        pairs.update((image, int(text)) for text in rng.choice(texts, min(each, texts), replace=False))
    for text in range(texts_before, texts):
        pairs.update((int(image), text) for image in rng.choice(images, min(each, images), replace=False))
    return np.array(sorted(pairs), dtype=int).reshape(-1, 2)


# -- What the evaluations say.


def _lime(kept: np.ndarray, split: int) -> np.ndarray:
    """Weight by an exponential kernel of width 0.25 on the cosine distance from the untouched input, as lime does."""
    distance = 1 - np.sqrt(kept.mean(1))
    return np.sqrt(np.exp(-((distance / KERNEL_WIDTH) ** 2)))


def _shapley(kept: np.ndarray, split: int) -> np.ndarray:
    """Weight so that least squares gives Shapley values.

    Masks of size k have the mass (P-1)/(k(P-k)), whatever their number. Superpixels and words are drawn apart, so
    that masks of one size are equally likely only where they keep as many superpixels: each such group has its part.
    """
    players, sizes, seen = kept.shape[1], kept.sum(1), kept[:, :split].sum(1)
    _, group, counts = np.unique(sizes * (players + 1) + seen, return_inverse=True, return_counts=True)
    part = hypergeom.pmf(seen, players, split, sizes)
    weights, inner = np.full(len(kept), ENDS), _inner(kept)
    mass = (players - 1) / (sizes * (players - sizes)).clip(1)
    weights[inner] = (mass * part / counts[group])[inner]
    return weights


def _uniform(kept: np.ndarray, split: int) -> np.ndarray:
    """Weight all alike: with random masks, Banzhaf values."""
    return np.ones(len(kept))


# Called as kernel(kept (N,P) bool, number of superpixels S, which come first) -> (N,) weights.
KERNELS = {"lime": _lime, "shap": _shapley, "uniform": _uniform}


def _inner(kept: np.ndarray) -> np.ndarray:
    """Say which masks (N,P) keep some and hide some: all others are no matter of chance."""
    return kept.any(1) & ~kept.all(1)


def _framed(game: MaskedModel, options: Options) -> dict[str, Any]:
    """Return the parts of an explanation that masks do not change."""
    logits = game.logits(np.ones((1, game.n_segments), bool), np.ones((1, game.n_tokens), bool))[0]
    explained = _which(options.classes, logits, game.classes)
    return {
        "classes": list(game.classes),
        "explained": explained,
        "contrasts": tuple(_rival(options, index, logits, game.classes) for index in explained),
        "image": game.image,
        "segments": game.segments,
        "tokens": game.tokens,
        "links": game.links,
        "logits": logits,
        "masked_model": game,
    }


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


def _rival(options: Options, index: int, logits: np.ndarray, names: Sequence[str]) -> int:
    if options.contrast is None or len(names) < 2:
        return -1
    others = [int(i) for i in np.argsort(-logits, kind="stable") if i != index]
    if options.contrast == "runner_up":
        return others[0]
    chosen = _class(options.contrast, names)
    return others[0] if chosen == index else chosen


def _explained(frame: dict[str, Any], samples: Samples, options: Options) -> LocalExplanation:
    """Fit the surrogate to what has been evaluated."""
    if not len(samples.pairs):
        return _empty(frame, samples, options, "there is only one part to hide")
    values = targets(samples.logits, frame["explained"], frame["contrasts"], options.target)
    if np.ptp(values, axis=0).max() < SAME:
        return _empty(frame, samples, options, "the model says the same whatever is hidden")
    kept = samples.kept
    split = samples.image_masks.shape[1]
    weights = KERNELS[options.kernel](kept, split)
    penalty = options.ridge * np.eye(kept.shape[1])
    if options.smooth and split:
        roughness = _roughness(frame["image"], frame["segments"], split)
        penalty[:split, :split] += options.smooth * weights[_inner(kept)].sum() * roughness
    surrogate = _Surrogate(kept, values, weights, samples.pairs, penalty, split)
    intervals = surrogate.coefficients[:, 1:, None] + 1.96 * surrogate.errors[:, 1:, None] * np.array([-1.0, 1.0])
    share, share_intervals = _share(surrogate, split)
    return LocalExplanation(
        **frame,
        image_weights=surrogate.coefficients[:, 1 : split + 1],
        text_weights=surrogate.coefficients[:, split + 1 :],
        image_intervals=intervals[:, :split],
        text_intervals=intervals[:, split:],
        r2=surrogate.held_out(),
        share=share,
        share_intervals=share_intervals,
        interactions=_interactions(surrogate, split, frame),
        samples=samples,
        options=options,
    )


def _roughness(image: Tensor, segments: np.ndarray, count: int) -> np.ndarray:
    """Return the Laplacian (S,S) of superpixels by how near and alike they are, on average 1 for each.

    Two are tied by a Gaussian of the distance of their centres and of their mean colours.
    """
    height, width = segments.shape
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    colours = skimage_color.rgb2lab(image.permute(1, 2, 0).cpu().numpy(), channel_axis=-1)
    facts = np.dstack([rows / NEAR, columns / NEAR, colours / ALIKE]).reshape(-1, 5).T
    areas = np.bincount(segments.ravel())[:count]
    means = np.stack([np.bincount(segments.ravel(), fact)[:count] / areas for fact in facts], 1)
    ties = np.exp(-cdist(means, means, "sqeuclidean") / 2)
    np.fill_diagonal(ties, 0)
    return (np.diag(ties.sum(1)) - ties) * count / max(ties.sum(), math.ulp(1.0))


def _empty(frame: dict[str, Any], samples: Samples, options: Options, why: str) -> LocalExplanation:
    count, parts = len(frame["explained"]), (samples.image_masks.shape[1], samples.text_masks.shape[1])
    image, text = (np.zeros((count, part)) for part in parts)
    unknown = np.full(count, math.nan)
    return LocalExplanation(
        **frame,
        image_weights=image,
        text_weights=text,
        image_intervals=np.zeros((*image.shape, 2)),
        text_intervals=np.zeros((*text.shape, 2)),
        r2=unknown,
        share=unknown.copy(),
        share_intervals=np.full((count, 2), math.nan),
        interactions=pd.DataFrame(columns=list(_INTERACTION)).astype(_INTERACTION),
        samples=samples,
        options=options,
        nothing=why,
    )


def _converged(explanation: LocalExplanation) -> bool:
    """Say whether no standard error of the first class exceeds the tolerated share of the range of its weights."""
    weights = np.concatenate([explanation.image_weights[0], explanation.text_weights[0]])
    spans = np.concatenate([explanation.image_intervals[0], explanation.text_intervals[0]])
    errors = np.ptp(spans, axis=1) / (2 * 1.96)
    return bool(errors.max() < explanation.options.tolerance * np.ptp(weights))


class _Surrogate:
    """Weighted least squares with an intercept, all classes at once.

    Args:
        kept: (N,P) bool, S superpixels first.
        values: (N,C) what is explained.
        weights: (N,) of the evaluations.
        pairs: (N,2) which image mask and which text mask it was; masks 2n and 2n+1 are complements.
        penalty: (P,P) on products of weights.
        split: S.

    Attributes:
        coefficients: (C,1+P), the intercept first.
        errors: (C,1+P) standard errors; see `_errors`.
    """

    def __init__(
        self,
        kept: np.ndarray,
        values: np.ndarray,
        weights: np.ndarray,
        pairs: np.ndarray,
        penalty: np.ndarray,
        split: int,
    ) -> None:
        self.design = np.concatenate([np.ones((len(kept), 1)), kept], 1)
        self.values, self.weights, self.pairs, self.penalty = values, weights, pairs, np.pad(penalty, ((1, 0), (1, 0)))
        self.split, self.inner = split, _inner(kept)
        self.coefficients = self.fit(weights)
        self.residuals = values - self.design @ self.coefficients.T
        self.errors = self._errors()

    def fit(self, weights: np.ndarray) -> np.ndarray:
        """Return coefficients (C,1+P) for other weights (N,); the shortest where many fit equally well."""
        weighted = self.design * weights[:, None]
        return np.linalg.lstsq(weighted.T @ self.design + self.penalty, weighted.T @ self.values, rcond=1e-12)[0].T

    def held_out(self) -> np.ndarray:
        """Return (C,) weighted R² over folds of masks that the fit has not seen; complements stay together.

        With two kinds of masks both are left out at once, unless there are too few of one kind. The untouched and the
        empty input are in every fit and judged in none.
        """
        image, text = (self.pairs[:, side] // 2 % FOLDS for side in (0, 1))
        counts = self.pairs.max(0) + 1
        if counts.min() < 4 * FOLDS:
            image = text = text if counts[1] > counts[0] else image
        predicted = np.full_like(self.values, math.nan)
        for fold in range(FOLDS):
            seen = ((image != fold) & (text != fold)) | ~self.inner
            judged = (image == fold) & (text == fold) & self.inner
            if seen.sum() > self.design.shape[1] and judged.any():
                predicted[judged] = self.design[judged] @ self.fit(self.weights * seen).T
        there = ~np.isnan(predicted[:, 0])
        if there.sum() < 2:
            return np.full(self.values.shape[1], math.nan)
        weights, values = self.weights[there, None], self.values[there]
        left = (weights * (values - predicted[there]) ** 2).sum(0)
        around = (weights * (values - np.average(values, 0, weights[:, 0])) ** 2).sum(0)
        return 1 - left / np.where(around > 0, around, math.nan)

    def _errors(self) -> np.ndarray:
        """Return (C,1+P) how far coefficients would be with other masks; NaN where masks are too few to say.

        By leaving out clusters (CR3 of Bell and McCaffrey 2002), two ways, by image masks and by text masks (Cameron,
        Gelbach and Miller 2011): evaluations that share a mask are not independent, nor are complements, so that a
        mask and its complement are one cluster. The more of all possible masks were evaluated, the less is left to
        chance (finite population correction).
        """
        weighted = self.design * self.weights[:, None]
        scales, axes = np.linalg.eigh(weighted.T @ self.design + self.penalty)
        sound = scales > 1e-12 * scales[-1]
        back, root = axes[:, sound] / np.sqrt(scales[sound]), np.sqrt(self.weights[self.inner, None])
        rows, residuals = self.design[self.inner] @ back * root, self.residuals[self.inner] * root
        reach = rows @ back.T
        unknown = (axes[:, ~sound] ** 2).sum(1) > 1e-9
        single = reach.T**2 @ (residuals / (1 + SLACK - (rows**2).sum(1, keepdims=True))) ** 2
        variance = single * _unseen(len(self.pairs), len(scales) - 1)
        for side, own in self._sides():
            unseen = _unseen(self.pairs[:, side].max() + 1, len(own))
            clusters = self.pairs[self.inner, side] // 2
            if unseen:
                variance += unseen * (_left_out(rows, reach, residuals, clusters) - single)
                unknown[own] |= len(np.unique(clusters)) <= len(own) + 1
        return np.where(unknown, math.nan, np.sqrt(variance.clip(0)).T)

    def _sides(self) -> list[tuple[int, np.ndarray]]:
        """Return for each kind of masks its column of `pairs` and the coefficients of its players."""
        players = np.arange(1, self.design.shape[1])
        if np.array_equal(*self.pairs.T):
            return [(0, players)]
        return [(0, players[: self.split]), (1, players[self.split :])]


def _left_out(rows: np.ndarray, reach: np.ndarray, residuals: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return (1+P,C) the sum of squared changes of coefficients when each cluster in turn is left out.

    Args:
        rows: (N,R) the weighted design, rotated so that its products are the unit matrix.
        reach: (N,1+P) the same, rotated back.
        residuals: (N,C) weighted.
        clusters: (N,) numbers.
    """
    order = np.argsort(clusters, kind="stable")
    total = np.zeros((reach.shape[1], residuals.shape[1]))
    for members in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
        own = rows[members]
        kept = (1 + SLACK) * np.eye(len(own)) - own @ own.T
        total += (reach[members].T @ np.linalg.solve(kept, residuals[members])) ** 2
    count = max(1, len(np.unique(clusters)))
    return total * (count - 1) / count


def _unseen(count: int, players: int) -> float:
    """Return the share of all masks that were not evaluated."""
    return 1 - count * 0.5**players


def _share(surrogate: _Surrogate, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the words' share (C,) of all absolute weight and its interval (C,2), [0, 1] where nothing is known."""
    coefficients, errors = surrogate.coefficients[:, 1:], surrogate.errors[:, 1:]
    count, players = coefficients.shape
    if split in (0, players):
        alone = np.full(count, float(split == 0))
        return alone, np.stack([alone, alone], 1)
    share = _part(coefficients, errors, split)
    drawn = coefficients + errors * np.random.default_rng(0).standard_normal((DRAWS, count, players))
    drawn = _part(drawn, math.sqrt(2) * errors, split)  # a weight that is drawn carries the noise twice
    away = drawn - np.median(np.nan_to_num(drawn, nan=0.5), axis=0)
    low = share + np.quantile(np.nan_to_num(away, nan=-2), 0.025, axis=0)
    high = share + np.quantile(np.nan_to_num(away, nan=2), 0.975, axis=0)
    return share.clip(0, 1), np.stack([np.nan_to_num(low, nan=0), np.nan_to_num(high, nan=1)], 1).clip(0, 1)


def _part(weights: np.ndarray, errors: np.ndarray, split: int) -> np.ndarray:
    """Return the words' part of all strength, not clipped to [0, 1]; NaN where there is none.

    Noise adds to absolute weights, and most where weights are many and small. A weight that is nothing but noise of
    standard error e has on average the size e √(2/π), and exp(-(weight/e)²) is 1/√3: so what is subtracted leaves
    nothing of it on average, and all of a weight beyond noise.
    """
    far = np.divide(weights, errors, out=np.full_like(weights, math.inf), where=errors > 0)
    strength = np.abs(weights) - math.sqrt(6 / math.pi) * errors * np.exp(-(far**2))
    text, total = strength[..., split:].sum(-1), strength.sum(-1)
    return text / np.where(total > 0, total, math.nan)


def _interactions(surrogate: _Surrogate, split: int, frame: dict[str, Any]) -> pd.DataFrame:
    """Return the strongest effects of a superpixel and a unit together that their weights do not explain."""
    kept, weights = surrogate.design[:, 1:], surrogate.weights
    image, text = kept[:, :split], kept[:, split:]
    rows = []
    if image.shape[1] and text.shape[1]:
        image, text = (part - np.average(part, 0, weights) for part in (image, text))
        power = (weights[:, None] * image**2).T @ text**2
        for row, label in enumerate(frame["explained"]):
            residuals = weights * surrogate.residuals[:, row]
            effect = (residuals[:, None] * image).T @ text / power
            error = np.sqrt((_paired_squares(residuals, surrogate.pairs)[:, None] * image**2).T @ text**2) / power
            z = np.divide(effect, error, out=np.zeros_like(effect), where=error > 1e-12)
            for place in np.argsort(-np.abs(z), axis=None, kind="stable")[:SHOWN]:
                segment_, unit = np.unravel_index(place, z.shape)
                rows.append(
                    (frame["classes"][label], int(segment_), int(unit), effect[segment_, unit], z[segment_, unit])
                )
    return pd.DataFrame(rows, columns=list(_INTERACTION)).astype(_INTERACTION)


def _paired_squares(residuals: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return (N,) squared residuals, with their products where complements of both masks were evaluated together.

    The product of a superpixel and a word has one sign in a mask and its complement, and another one where only one
    of both is the complement.
    """
    signed = residuals * (1 - 2 * (pairs.sum(1) % 2))
    cell = np.unique(pairs // 2, axis=0, return_inverse=True)[1].ravel()
    cells = np.bincount(cell, signed)
    return (cells**2 / np.bincount(cell))[cell]


# -- Many photos.


def explain_dataset(
    model: ProductClassifier | Predictor,
    data: ProductDataset,
    cache: str | Path | None = None,
    **options: Any,
) -> list[LocalExplanation]:
    """Explain every photo of a split; each is kept on disk once it is done, so that an interrupted run goes on.

    What was kept is used again for the same photo, words, model, options and sources of this package's masks and fits.

    Args:
        model: or a predictor of it.
        data: pictures and words, at the size the model takes.
        cache: folder of the explanations; None takes the cache folder.
        **options: of `explain`.

    Returns:
        One explanation a photo, in order; those from the cache have no `masked_model`.

    Raises:
        UsageError: see `explain`.
        UserError: a photo has nothing that the model uses; the message names its place in the split.
    """
    predictor = as_predictor(model, data[0].image if len(data) else None)
    folder = Path(cache) if cache else cache_dir("explanations")
    deciding = [fingerprint(predictor.model), code_fingerprint(__name__)]
    found = []
    for position in tqdm(range(len(data)), desc="explain", delay=2, mininterval=2):
        sample, chosen = data[position], dict(options)
        if callable(options.get("segments")):  # a function has no name that would tell it from all others
            chosen["segments"] = segment(sample.image, options["segments"], options.get("n_segments", 50))
        read = [asdict(word) for word in sample.words] or sample.text
        key = digest(deciding, chosen, (sample.image * 255).round().byte(), read)
        path = folder / f"{key}.safetensors"
        found.append(_kept(path) or _made(path, predictor, sample, chosen, position))
    return found


def _kept(path: Path) -> LocalExplanation | None:
    if not path.exists():
        return None
    try:
        return LocalExplanation.load(path)
    except UserError as error:
        warnings.warn(f"{error}; it is made again now", stacklevel=3)
        return None


def _made(path: Path, predictor: Predictor, sample: Sample, options: dict[str, Any], position: int) -> LocalExplanation:
    try:
        explanation = explain(predictor, sample.image, sample.words or sample.text, **{"progress": False, **options})
    except UserError as error:
        raise type(error)(f"photo {position}: {error}") from None
    explanation.save(path)
    return explanation
