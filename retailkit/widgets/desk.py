"""What the explanation tool works on, without any widget: photos, models, changes, and what models say then."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from retailkit.data.table import ProductData, Sample
from retailkit.data.text import kept_apart, redact_barcodes
from retailkit.explain import classes, lime
from retailkit.explain import metrics as explain_metrics
from retailkit.explain.classes import ClassExplanation
from retailkit.explain.lime import LocalExplanation
from retailkit.explain.masking import MaskedModel, Token, hide, segment, tokens_of
from retailkit.inference import Predictor
from retailkit.metrics import Evaluation
from retailkit.models import ProductClassifier
from retailkit.widgets import uploads

SIDE_BY_SIDE = 3  # models at most
PREVIEW = 32  # masks of a first, coarse explanation
CHUNK = 32  # masks after which an explanation is shown again, and can be stopped
SEGMENTS = 24  # superpixels wished for
FEATHER = 2.0  # pixels, of hidden superpixels
MASKS = {"feather": FEATHER, "design": "orthogonal", "smooth": 0.2, "progress": False}
UNSURE = 0.2  # a photo whose two most probable classes are nearer than that
PAIRS = 6  # of classes that are taken for one another, offered as filters
BACKGROUNDS = {
    "as it is": "original",
    "only the product": "only_fg",
    "blurred": "blurred",
    "one colour, high contrast": "coloured",
    "only the background": "only_bg_t",
}


@dataclass(frozen=True)
class Photo:
    """A photo on the desk.

    Attributes:
        name: what to call it.
        sample: picture and words at the models' size.
        known: whether the label is the truth.
        segments: (H,W) superpixels 0..S-1.
        tokens: T words, as explanations number them.
        position: among the desk's photos, -1 for one from outside.
    """

    name: str
    sample: Sample
    known: bool
    segments: np.ndarray
    tokens: tuple[Token, ...]
    position: int = -1

    @property
    def text(self) -> str:
        """Return what was read."""
        return " ".join(unit.text for unit in self.tokens)


@dataclass(frozen=True)
class Change:
    """What if? Everything at its default is the photo as it is.

    Attributes:
        hidden: superpixels that show their mean colour.
        unread: words that are not read.
        text: what is read instead, whatever `unread` says; None leaves the words.
        brightness: factor on all pixels.
        blur: standard deviation, in shares of the picture's side.
        background: key of `BACKGROUNDS`.
        occlusion: share of the product that is covered.
    """

    hidden: frozenset[int] = frozenset()
    unread: frozenset[int] = frozenset()
    text: str | None = None
    brightness: float = 1.0
    blur: float = 0.0
    background: str = "as it is"
    occlusion: float = 0.0

    def read(self, photo: Photo) -> str:
        """Return what is left to read."""
        if self.text is not None:
            return redact_barcodes(self.text)
        return " ".join(unit.text for n, unit in enumerate(photo.tokens) if n not in self.unread)


def changed(photo: Photo, change: Change) -> Tensor:
    """Return the picture (3,H,W) after a change.

    Raises:
        UserError: a background or an occlusion is asked for and the photo has no mask, or none that can be used.
        UsageError: an unknown background, or a number out of range.
    """
    image = photo.sample.image
    variants = [(BACKGROUNDS[pick(BACKGROUNDS, change.background, "background")], {})]
    variants += [("occlusion", {"share": change.occlusion})] if change.occlusion else []
    for name, options in variants:
        if name == "original":
            continue
        if photo.sample.mask is None:
            raise UserError(f"{photo.name} has no product mask, which the background needs; leave it as it is")
        image = backgrounds.apply_variant(image[None], photo.sample.mask[None], name, **options)[0]
    if change.brightness < 0 or change.blur < 0:
        raise UsageError(f"brightness={change.brightness} and blur={change.blur}: use 0 or more")
    image = (image * change.brightness).clamp(0, 1)
    if sigma := change.blur * image.shape[-1]:
        image = gaussian_blur(image, [2 * int(3 * sigma) + 1] * 2, [sigma, sigma])
    return hide(image, photo.segments, sorted(change.hidden), FEATHER) if change.hidden else image


def answer(predictors: Mapping[str, Predictor], image: Tensor, text: str) -> dict[str, np.ndarray]:
    """Return what each model says, (K,) probabilities by model; a model that has nothing to go by is left out.

    The text has been redacted: numbers that stand side by side since a word between them is switched off stay.
    """
    found = {}
    for name, predictor in predictors.items():
        try:
            found[name] = predictor(image[None], [kept_apart(text)])[0].cpu().numpy()
        except UserError:  # a model that only reads, and no words
            continue
    return found


def explaining(
    predictors: Mapping[str, Predictor], photo: Photo, label: int, rival: int, budget: int, seed: int = 0
) -> Iterator[tuple[str, LocalExplanation | str]]:
    """Yield better and better explanations of several models, by turns: first a coarse one of each.

    Args:
        predictors: of the models, by name.
        photo: to explain.
        label: index of the class.
        rival: index of the class that it is contrasted with.
        budget: masks a model.
        seed: of the masks.

    Yields:
        Name of a model and its explanation, or why it has none.
    """
    options = {**MASKS, "segments": photo.segments, "classes": (label,), "contrast": rival, "seed": seed}
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
    """Yield explanations with more and more masks, by turns, until each has had `budget`, or there are no more."""
    found = {name: e for name, e in found.items() if not e.nothing and spent(e) < budget}
    while found:
        for name, before in list(found.items()):
            found[name] = before.refine(min(CHUNK, budget - spent(before)))
            if spent(found[name]) in (budget, spent(before)):
                yield name, found.pop(name)
            else:
                yield name, found[name]


def spent(explanation: LocalExplanation) -> int:
    """Return how many masks of the picture an explanation has had; of the text, where there is no picture."""
    return explanation.evaluations["images"] or explanation.evaluations["texts"]


def steadiness(explanation: LocalExplanation, draws: int = 20) -> float:
    """Return the rank correlation to expect between two such explanations with other masks, NaN where unknown.

    Weights are drawn within their 95 % intervals and compared, see `metrics.stability`. A draw carries the noise twice,
    as it was estimated and as it is drawn: with weights of variance V and noise of variance E, draws correlate by
    (V + E) / (V + 2E), which is 1/2 where all is noise, and explanations by V / (V + E): 2 less the inverse of that.

    Args:
        explanation: its first row is judged.
        draws: explanations that are compared.
    """
    weights = np.concatenate([explanation.image_weights[0], explanation.text_weights[0]])
    spans = np.concatenate([explanation.image_intervals[0], explanation.text_intervals[0]])
    errors = np.ptp(spans, axis=1) / (2 * 1.96)
    if explanation.nothing or not np.isfinite(errors).all():
        return float("nan")
    drawn = weights + errors * np.random.default_rng(0).standard_normal((draws, len(weights)))
    return 2 - 1 / max(explain_metrics.stability(drawn).spearman, 0.5)  # NaN stays NaN


class Desk:
    """A data set, its models, and the photos that none of them has learned from.

    Args:
        data: with words, if models read.
        models: by name; predictors save compiling them again. All look at pictures of one size. They are put into
            evaluation mode and stay in it, since what asks them may be several threads.

    Attributes:
        classes: K names.
        pictures: the photos.
        predictors: by name.

    Raises:
        UsageError: no model, or models of other classes or sizes than the first.
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
            raise UsageError("models differ in classes or in the size of their pictures; use some that agree in both")
        model = next(iter(self.predictors.values())).model
        self.data, self.classes = training.with_classes(data, model), list(model.classes)
        unseen = [split for split in data.splits if split != "train"] or data.splits
        self.pictures = self.data.split("+".join(unseen), *(sizes or {model.input_size}))
        table = data.table
        kin = table["family"].where(table["family"] != "", table["coarse"])
        self.kin = dict(zip(table["label"], kin, strict=True))
        self._outside = tempfile.TemporaryDirectory(prefix="retailkit")  # gone with the desk
        self._uploads: Counter[str] = Counter()  # photos from outside, by name

    def __len__(self) -> int:
        return len(self.pictures)

    @cached_property
    def judged(self) -> dict[str, Evaluation]:
        """What each model says of all photos; encoded once and kept in the cache."""
        found = {}
        for name, predictor in self.predictors.items():
            seen = training.encode(predictor.model, self.pictures)
            found[name] = training.evaluate(predictor.model, seen)
        return found

    def shows(self, name: str) -> list[str]:
        """Return what photos can be filtered by: all, wrong, unsure, and pairs of classes that a model confuses."""
        return ["all", "wrong", "unsure", *self.pairs(name)]

    def pairs(self, name: str) -> dict[str, tuple[int, int]]:
        """Return the pairs of classes that a model confuses: what a filter calls them, and their indices."""
        table, index = self.judged[name].confusion_pairs(PAIRS), self.classes.index
        return {f"{row.first} / {row.second}": (index(row.first), index(row.second)) for row in table.itertuples()}

    def conditions(self) -> list[str]:
        """Return the capture conditions that photos come in."""
        return sorted(set(self.pictures.table["condition"]) - {""})

    def find(self, name: str, label: str = "", show: str = "all", condition: str = "") -> list[int]:
        """Return positions of photos.

        Args:
            name: of the model that is wrong or unsure about them.
            label: their class; "" takes all.
            show: one of `shows`.
            condition: one of `conditions`; "" takes all.
        """
        judged, table = self.judged[name], self.pictures.table.reset_index(drop=True)
        chosen = np.ones(len(table), dtype=bool)
        if label:
            chosen &= (table["label"] == pick(self.classes, label, "class")).to_numpy()
        if condition:
            chosen &= (table["condition"] == pick(self.conditions(), condition, "condition")).to_numpy()
        pick(self.shows(name), show, "filter")
        if show == "wrong":
            chosen &= ~judged.correct
        elif show == "unsure":
            chosen &= np.diff(np.sort(judged.probs, 1)[:, -2:], axis=1)[:, 0] < UNSURE
        elif show != "all":
            pair = self.pairs(name)[show]
            chosen &= np.isin(judged.labels, pair) & ~judged.correct & np.isin(judged.predicted, pair)
        return np.flatnonzero(chosen).tolist()

    def photo(self, position: int) -> Photo:
        """Return one of the photos.

        Raises:
            UsageError: there is no such photo.
        """
        if not 0 <= position < len(self):
            raise UsageError(f"photo {position} is out of range; there are {len(self)}: 0 to {len(self) - 1}")
        return self._laid(f"photo {position}", self.pictures[position], True, position)

    def own_photo(self, content: bytes, name: str) -> Photo:
        """Return a photo from outside, with the words that the OCR engine reads on it.

        Args:
            content: of the file.
            name: of the file; the second photo of that name is called "name (2)".

        Raises:
            UserError: see `uploads.decoded`.
        """
        pixels, path = uploads.decoded(content, name), Path(self._outside.name, "photo.png")
        Image.fromarray(pixels).save(path, compress_level=1)
        outside = folder.photos([path], self.classes)
        if any("text" in p.model.modalities for p in self.predictors.values()):
            outside = ocr.add_text(outside, progress=False)
        self._uploads[name] += 1
        called = name if self._uploads[name] == 1 else f"{name} ({self._uploads[name]})"
        return self._laid(called, outside.split("test", self.pictures.size, self.pictures.fit)[0], False)

    def _laid(self, name: str, sample: Sample, known: bool, position: int = -1) -> Photo:
        units = tokens_of(sample.words or sample.text)
        return Photo(name, sample, known, segment(sample.image, "slic", SEGMENTS), units, position)

    def question(self, photo: Photo, name: str) -> tuple[int, int]:
        """Return the class to ask about and the one to contrast it with.

        That is what the model says, and the truth if that is another one; else its most probable twin, or the
        runner-up where there is no twin.

        Args:
            photo: what is looked at.
            name: of the model.
        """
        said = answer({name: self.predictors[name]}, photo.sample.image, photo.text)
        probs = said.get(name, np.zeros(len(self.classes)))
        label = int(probs.argmax())
        if photo.known and photo.sample.label != label:
            return label, photo.sample.label
        return label, self.twin(label, probs)

    def twin(self, label: int, probs: np.ndarray) -> int:
        """Return the most probable class of the same family as `label`, or the most probable other one."""
        order = [int(i) for i in np.argsort(-probs, kind="stable") if i != label]
        family = self.kin.get(self.classes[label], "")
        same = [i for i in order if family and self.kin.get(self.classes[i]) == family]
        return (same or order)[0]

    def explaining_class(
        self, name: str, label: int, photos: int, budget: int, seed: int = 0
    ) -> Iterator[tuple[int, ClassExplanation | None, pd.DataFrame]]:
        """Explain photos of a class one by one, and in the end sum them up and check that on the others.

        Args:
            name: of the model.
            label: index of the class.
            photos: to explain at most; the others of the class are what the check hides features in.
            budget: masks a photo.
            seed: of the masks and of the check.

        Yields:
            Photos explained so far, what the class is recognised by (None before the end), and the deletion check;
            empty where no photo is left for it.

        Raises:
            UserError: there is no photo of the class, or nothing to explain in any.
        """
        rows = self.find(name, self.classes[label])
        if not rows:
            raise UserError(f"there is no photo of {self.classes[label]!r}; choose another class")
        count = min(photos, max(1, len(rows) - max(1, len(rows) // 3)))
        predictor, found = self.predictors[name], []
        for row in rows[:count]:
            photo = self.photo(row)
            rival = self.twin(label, self.judged[name].probs[row])
            *_, (_, explanation) = explaining({name: predictor}, photo, label, rival, budget, seed)
            found += [explanation] if isinstance(explanation, LocalExplanation) else []
            yield len(found), None, pd.DataFrame()
        summed = classes.explain_class(found, label, predictor.model.image_encoder)
        held = list(self._games(predictor, rows[count:]))
        check = classes.deletion_check(summed, held, seed=seed) if held else pd.DataFrame()
        yield len(found), summed, check

    def _games(self, predictor: Predictor, rows: Sequence[int]) -> Iterator[MaskedModel]:
        for photo in map(self.photo, rows):
            try:
                yield MaskedModel(predictor, photo.sample.image, photo.segments, photo.tokens)
            except UserError:  # a model that only reads, and no words
                continue
