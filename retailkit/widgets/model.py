"""What the explanation tool knows and computes, without widgets: photos, models, changes, explanations in steps."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from retailkit import backgrounds, training
from retailkit.config import UsageError, UserError, pick
from retailkit.data import folder, ocr
from retailkit.data.images import image_size, read_image
from retailkit.data.table import ProductData, Sample
from retailkit.data.text import kept_apart, redact_barcodes
from retailkit.explain import classes, lime
from retailkit.explain import metrics as explain_metrics
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.explain.masking import MaskedModel, Token, hide, segment, tokens_of
from retailkit.explain.phrases import words_read_often
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.models import ProductClassifier

SIDE_BY_SIDE = 3  # models at most
PREVIEW = 32  # masks of a first, coarse explanation
CHUNK = 32  # masks after which an explanation is shown again, and can be stopped
SEGMENTS = 24  # superpixels asked for
FEATHER = 2.0  # pixels, of hidden superpixels
MASKS = {"feather": FEATHER, "smooth": 0.2, "progress": False}
SHOWS = ("all", "wrong")  # photos: all, or those that the first model classifies incorrectly
BACKGROUNDS = {
    "unchanged": "original",
    "none (product only)": "only_fg",
    "blurred": "blurred",
    "one contrasting colour": "coloured",
    "product removed": "only_bg_t",
}
MEGABYTES = 9  # of an uploaded file: a Jupyter server passes messages of 10 MB
SMALLEST, LARGEST = 32, 2048  # pixels per side of an uploaded photo; a larger one is made smaller
MEGAPIXELS = 60  # of an uploaded photo


@dataclass(frozen=True)
class Photo:
    """A photo of the tool."""

    name: str
    sample: Sample  # at the models' input size
    segments: np.ndarray  # (H,W) superpixels 0..S-1
    tokens: tuple[Token, ...]  # T words, as explanations number them
    position: int = -1  # among the tool's photos; -1 for an uploaded one

    @property
    def text(self) -> str:
        """Return the OCR words as one text."""
        return " ".join(token.text for token in self.tokens)

    @property
    def truth(self) -> int:
        """Return the index of the class, -1 where it is not known."""
        return self.sample.label if self.position >= 0 else -1

    @property
    def n_segments(self) -> int:
        """Return the number of superpixels."""
        return int(self.segments.max()) + 1

    def regions(self) -> np.ndarray:
        """Return the part that each pixel belongs to, (H,W): superpixels 0..S-1, words from S on, over their boxes."""
        labels = self.segments.copy()
        for number, token in enumerate(self.tokens, self.n_segments):
            for word in token.words:
                x0, y0, x1, y1 = (max(0, round(edge)) for edge in word.box)
                labels[y0:y1, x0:x1] = number
        return labels


@dataclass(frozen=True)
class Change:
    """A change of the photo in What if?; with the defaults the photo is as it is."""

    hidden: frozenset[int] = frozenset()  # superpixels that show their mean colour
    unread: frozenset[int] = frozenset()  # words that are left out
    text: str | None = None  # to use instead of the photo's words, whatever `unread` says
    brightness: float = 1.0  # factor on all pixels
    blur: float = 0.0  # standard deviation, as a share of the image's side
    background: str = "unchanged"  # key of `BACKGROUNDS`
    occlusion: float = 0.0  # share of the product that is covered

    def words(self, photo: Photo) -> str:
        """Return the text that models are given."""
        if self.text is not None:
            return redact_barcodes(self.text)
        return " ".join(token.text for n, token in enumerate(photo.tokens) if n not in self.unread)

    def image(self, photo: Photo) -> Tensor:
        """Return the changed image (3,H,W); raise UserError where it needs a product mask and there is none."""
        image, mask = photo.sample.image, photo.sample.mask
        variants = {BACKGROUNDS[pick(BACKGROUNDS, self.background, "background")]: {}}
        if self.occlusion:
            variants["occlusion"] = {"share": self.occlusion}
        variants.pop("original", None)
        if variants and mask is None:
            raise UserError(f"{photo.name} has no product mask, so its background cannot be changed")
        for name, options in variants.items():
            image = backgrounds.apply_variant(image[None], mask[None], name, **options)[0]
        image = (image * self.brightness).clamp(0, 1)
        if sigma := self.blur * image.shape[-1]:
            image = gaussian_blur(image, [2 * int(3 * sigma) + 1] * 2, [sigma, sigma])
        return hide(image, photo.segments, sorted(self.hidden), FEATHER) if self.hidden else image


@dataclass(frozen=True)
class State:
    """What is on the screen of the tool; what is kept by model lacks a model without an answer or an explanation."""

    models: tuple[str, ...]  # the first one decides which photos pass the filters and which question is asked
    found: tuple[int, ...]  # positions of the photos that pass the filters
    photo: Photo
    label: int  # class that is explained
    contrast: int  # class that it is compared with
    before: Mapping[str, np.ndarray]  # (K,) probabilities of the photo by model
    change: Change = Change()
    after: Mapping[str, np.ndarray] = field(default_factory=dict)  # those of the changed photo
    explanations: Mapping[str, LocalExplanation] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)  # why a model has no explanation
    summed: tuple[str, ClassExplanation, pd.DataFrame] | None = None  # model, explanation of a class, deletion check

    def probabilities(self, classes: Sequence[str], others: bool = False) -> pd.DataFrame:
        """Return the probabilities before and after the change: columns `model`, `label`, `before` and `after`.

        `others` includes the classes that a model predicts before and after, besides the class and its contrast.
        """
        rows = []
        for name in self.models:
            sides = [self.before.get(name), self.after.get(name)]
            shown = [self.label, self.contrast, *(int(p.argmax()) for p in sides if others and p is not None)]
            for k in dict.fromkeys(shown):
                rows.append((name, classes[k], *(np.nan if p is None else float(p[k]) for p in sides)))
        return pd.DataFrame(rows, columns=["model", "label", "before", "after"])


def answers(predictors: Mapping[str, Predictor], image: Tensor, text: str) -> dict[str, np.ndarray]:
    """Return (K,) probabilities by model; a model that only reads has none where there are no words."""
    found, texts = {}, [kept_apart(text)]  # numbers that became neighbours when a barcode was taken out
    for name, predictor in predictors.items():
        with suppress(UserError):  # a model that only reads, and no words
            found[name] = predictor(image[None], texts)[0].cpu().numpy()
    return found


def explaining(
    predictors: Mapping[str, Predictor], photo: Photo, label: int, contrast: int, budget: int
) -> Iterator[tuple[str, LocalExplanation | str]]:
    """Yield each model's name and a coarse explanation, or why there is none, then better ones of `budget` masks."""
    options = {**MASKS, "segments": photo.segments, "classes": (label,), "contrast": contrast}
    found = {}
    for name, predictor in predictors.items():
        try:
            words = photo.sample.words or photo.sample.text
            found[name] = lime.explain(predictor, photo.sample.image, words, budget=min(PREVIEW, budget), **options)
        except UserError as error:
            yield name, str(error)
        else:
            yield name, found[name]
    yield from refining(found, budget)


def refining(found: Mapping[str, LocalExplanation], budget: int) -> Iterator[tuple[str, LocalExplanation]]:
    """Yield explanations with more and more masks in turn, until each has `budget` of them or there are no more."""
    found = {name: e for name, e in found.items() if not e.nothing and spent(e) < budget}
    while found:
        for name, before in list(found.items()):
            found[name] = before.refine(min(CHUNK, budget - spent(before)))
            yield name, found[name]
            if spent(found[name]) in (budget, spent(before)):
                del found[name]


def spent(explanation: LocalExplanation) -> int:
    """Return how many image masks an explanation has used; text masks where there is no image."""
    return explanation.evaluations["images"] or explanation.evaluations["texts"]


def stability(explanation: LocalExplanation, row: int = 0) -> float:
    """Return the rank correlation to expect with an explanation from other masks, NaN where unknown.

    Weights are drawn within their 95 % intervals and compared, see `metrics.stability`. A draw holds the noise twice,
    as it was estimated and as it is drawn: with weights of variance V and noise of variance E, draws correlate by
    (V + E) / (V + 2E), which is 1/2 where all is noise, and explanations by V / (V + E), which is 2 less the inverse.
    """
    weights = np.concatenate([explanation.image_weights[row], explanation.text_weights[row]])
    spans = np.concatenate([explanation.image_intervals[row], explanation.text_intervals[row]])
    errors = np.ptp(spans, axis=1) / (2 * 1.96)
    if explanation.nothing or not np.isfinite(errors).all():
        return float("nan")
    drawn = weights + errors * np.random.default_rng(0).standard_normal((20, len(weights)))
    return 2 - 1 / max(explain_metrics.stability(drawn).spearman, 0.5)  # NaN stays NaN


def decode(content: bytes, name: str) -> np.ndarray:
    """Return the pixels of an uploaded photo, (H,W,3) uint8, upright and at most `LARGEST` wide and high.

    Raises `UserError` for a file that is empty or too large, is no image, or has too few or too many pixels.
    """
    try:
        if not content:
            raise UserError("the file is empty; choose another one")
        if len(content) > MEGABYTES * 1_000_000:
            raise UserError(f"{len(content) / 1e6:.1f} MB is more than {MEGABYTES} MB; make the photo smaller")
        width, height = image_size(io.BytesIO(content))
        if width * height > MEGAPIXELS * 1_000_000:
            raise UserError(f"{width} x {height} pixels are more than {MEGAPIXELS} megapixels; make the photo smaller")
        image = Image.fromarray(read_image(io.BytesIO(content)))
        if min(width, height) < SMALLEST:
            raise UserError(f"{width} x {height} pixels are too few; use at least {SMALLEST} per side")
    except UserError as error:
        reason = str(error).removeprefix("the image: ").removesuffix(" or drop its row")
        raise UserError(f"{name}: {reason}") from None
    image.thumbnail((LARGEST, LARGEST))
    return np.array(image)


class Desk:
    """A data set, its models, and the photos that no model was trained on.

    `data` has words, if models read. Models stay in evaluation mode, since several threads may use them.

    Raises:
        UsageError: no model, or models of different classes or input sizes.
    """

    def __init__(self, data: ProductData, models: Mapping[str, ProductClassifier | Predictor]) -> None:
        if not models:
            raise UsageError("models is empty; give at least one, as {'name': model}")
        self.predictors = {n: m if isinstance(m, Predictor) else Predictor(m) for n, m in models.items()}
        for predictor in self.predictors.values():
            predictor.model.eval()
        sizes = {p.size for p in self.predictors.values() if "image" in p.model.modalities}
        kinds = {tuple(p.model.classes) for p in self.predictors.values()}
        if len(sizes) > 1 or len(kinds) > 1:
            raise UsageError("models differ in classes or in their input size; use models that agree in both")
        model = next(iter(self.predictors.values())).model
        self.data, self.classes = training.with_classes(data, model), list(model.classes)
        unseen = [split for split in data.splits if split != "train"] or data.splits
        self.images = self.data.split("+".join(unseen), *(sizes or {model.input_size}))
        table, paths = data.table, self.images.table["image"]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        self.names = [os.path.relpath(path, folder) for path in paths]  # of the photos' files
        families = table["family"].where(table["family"] != "", table["coarse"])
        self.families = dict(zip(table["label"], families, strict=True))

    @property
    def about(self) -> str:
        """Return how many photos of the data set these are, and which."""
        splits = list(dict.fromkeys(self.images.table["split"]))
        learned = "models learn from these" if "train" in splits else "no model learns from these"
        if (known := self.data.info.get("learned")) is not None:  # images that a checkpoint was trained on
            count = self.images.table["image"].isin(known).sum() or "none"
            learned = f"the model was trained on {count} of these"
        shown = f"{len(self.images)} of {len(self.data)} photos (split {', '.join(splits)}: {learned})"
        return f"{shown}. {self.data.info.get('left_out', '')}"

    @cached_property
    def judged(self) -> dict[str, Evaluation]:
        """The evaluation of each model on all photos; features are encoded once and kept in the cache."""
        models = {name: predictor.model for name, predictor in self.predictors.items()}
        return {n: training.evaluate(model, training.encode(model, self.images)) for n, model in models.items()}

    def find(self, name: str, label: str = "", show: str = "all") -> list[int]:
        """Return positions of photos of a class, "" for all; `show` is one of `SHOWS`, as model `name` answers."""
        judged = self.judged[name]
        chosen = ~judged.correct if pick(SHOWS, show, "filter") == "wrong" else np.ones(len(self.images), dtype=bool)
        if label:
            chosen &= judged.labels == self.index(label)
        return np.flatnonzero(chosen).tolist()

    def index(self, label: str) -> int:
        """Return the index of a class; an unknown one raises `UsageError`."""
        return self.classes.index(pick(self.classes, label, "class"))

    def photo(self, position: int) -> Photo:
        """Return one of the photos."""
        return self._laid(self.names[position], self.images[position], position)

    def own_photo(self, content: bytes, name: str) -> Photo:
        """Return an uploaded photo, with the words that the OCR engine reads on it; errors are those of `decode`."""
        pixels = decode(content, name)
        with tempfile.TemporaryDirectory(prefix="retailkit") as place:
            path = Path(place, "photo.png")
            Image.fromarray(pixels).save(path, compress_level=1)
            outside = folder.photos([path], self.classes)
            if any("text" in p.model.modalities for p in self.predictors.values()):
                outside = ocr.add_text(outside)
            sample = outside.split("test", self.images.size, self.images.fit)[0]
        return self._laid(name, sample, -1)

    def _laid(self, name: str, sample: Sample, position: int) -> Photo:
        tokens = tokens_of(sample.words or sample.text)
        return Photo(name, sample, segment(sample.image, "slic", SEGMENTS), tokens, position)

    def question(self, photo: Photo, probs: np.ndarray | None) -> tuple[int, int]:
        """Return the indices of the class to explain and of the contrast class, for an answer (K,) or None.

        They are the predicted class and the true one; where these are the same, the predicted class and `runner_up`.
        """
        probs = np.zeros(len(self.classes)) if probs is None else probs
        label = int(probs.argmax())
        return label, self.runner_up(label, probs) if photo.truth in (-1, label) else photo.truth

    def runner_up(self, label: int, probs: np.ndarray) -> int:
        """Return the most probable class of the same family as `label`; without one, the most probable other class."""
        order = [int(i) for i in np.argsort(-probs, kind="stable") if i != label]
        family = self.families.get(self.classes[label], "")
        same = [i for i in order if family and self.families.get(self.classes[i]) == family]
        return (same or order)[0]

    def explaining_class(
        self, name: str, label: int, photos: int, budget: int
    ) -> Iterator[tuple[int, ClassExplanation | None, pd.DataFrame]]:
        """Explain up to `photos` of a class with model `name` and `budget` masks each, then summarise them.

        Yields:
            Number of photos explained so far, the explanation of the class (None before the end), and its deletion
            check on the other photos of the class; empty where none is left for it.

        Raises:
            UserError: there is no photo of the class, or nothing to explain in any.
        """
        rows = self.find(name, self.classes[label])
        if not rows:
            raise UserError(f"there is no photo of {self.classes[label]!r}; choose another class")
        count = min(photos, max(1, len(rows) - max(1, len(rows) // 3)))
        predictor, found = self.predictors[name], []
        for row in rows[:count]:
            contrast = self.runner_up(label, self.judged[name].probs[row])
            *_, (_, explanation) = explaining({name: predictor}, self.photo(row), label, contrast, budget)
            found += [explanation] if isinstance(explanation, LocalExplanation) else []
            yield len(found), None, pd.DataFrame()
        others = words_read_often(self.data.table["text"][self.data.table["label"] != self.classes[label]])
        summed = classes.explain_class(found, label, predictor.model.image_encoder, vocabulary=others)
        held = []
        for photo in map(self.photo, rows[count:]):
            with suppress(UserError):  # a model that only reads, and no words
                held.append(MaskedModel(predictor, photo.sample.image, photo.segments, photo.tokens))
        yield len(found), summed, classes.deletion_check(summed, held) if held else pd.DataFrame()
