"""Folds of look-alikes, and heads that judge only what they have not seen."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, training
from retailkit.config import UsageError
from retailkit.inference import Predictor
from retailkit.training import TrainConfig, TrainSpec

CLASSES = ["lean", "medium"]
QUICK = TrainConfig(epochs=20, batch_size=128)


@pytest.fixture
def a_cache_of_its_own():
    """No: the tests of this file share the features of the same photos."""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Two classes in five scenes each; the photos of one scene are all but equal."""
    root = tmp_path_factory.mktemp("shelf")
    rows = []
    for label in CLASSES:
        for scene in range(5):
            rng = np.random.default_rng(100 * scene + len(label))
            picture = rng.integers(0, 255, (6, 6, 3), np.uint8)
            for shot in range(3):
                path = root / f"{label}-{scene}-{shot}.png"
                Image.fromarray(picture + np.uint8(shot)).resize((64, 64), Image.Resampling.NEAREST).save(path)
                rows.append({"image": path.name, "label": label, "split": "train", "group": f"{label}-{scene}"})
    pd.DataFrame(rows).to_csv(root / "photos.csv", index=False)
    return data.load("folder", root / "photos.csv")


def test_folds_keep_look_alikes_together(shelf):
    group = shelf.table["group"]
    for count, known in ((4, None), (5, group)):
        dealt = training.folds(shelf, count, known)
        assert sorted(set(dealt)) == list(range(count))
        assert (pd.Series(dealt).groupby(group).nunique() == 1).all(), "photos of one scene lie in one fold"
    assert (pd.crosstab(dealt, shelf.table["label"]) == 3).all(axis=None), "every fold has every class"
    with pytest.raises(UsageError, match="2 folds are too few"):
        training.folds(shelf, count=2)


def test_five_seeds_test_every_image_once_and_a_given_test_split_is_kept(shelf):
    tested = [training.repetition(shelf, seed).table["split"] == "test" for seed in range(5)]
    assert (np.sum(tested, axis=0) == 1).all()
    again = training.repetition(shelf, 6)
    assert ((again.table["split"] == "test") == tested[1]).all()
    given = replace(shelf, table=shelf.table.assign(split=np.where(tested[0], "test", "train")))
    assert training.repetition(given, 3) is given


@pytest.fixture(scope="module")
def readable(shelf):
    """The same photos; one scene of each class has no words, the others name the class."""
    words = ["" if "-3-" in row.image else f"{row.label} beef" for row in shelf.table.itertuples()]
    return replace(shelf, table=shelf.table.assign(text=words))


def test_cross_validation_judges_each_image_by_a_head_that_has_not_seen_it(readable):
    spec = TrainSpec(model="concat", model_options={"text_encoder": "char_ngrams"}, config=QUICK)
    judged = training.cross_validate(spec, readable, training.folds(readable, count=4))
    assert len(judged.models) == 4 and judged.evaluate().n == len(readable)
    row = int(np.flatnonzero(judged.folds == 2)[0])
    sample = readable.split("train", 224)[row]
    with torch.no_grad():
        alone = judged.models[2](sample.image[None], [sample.text]).softmax(1)[0].numpy()
    assert np.allclose(judged.evaluate().probs[row], alone, atol=0.02)
    swap = {"lean beef": "medium beef", "medium beef": "lean beef", "": ""}
    read = Predictor(judged.models[0]).encode_text
    lied, silent, words_only, nothing = (
        judged.evaluate(read(texts), images)
        for texts, images in (
            ([swap[text] for text in readable.table["text"]], True),
            ([""] * len(readable), True),
            (["lean"] * len(readable), False),
            (["lean", *[""] * (len(readable) - 1)], False),
        )
    )
    assert lied.top1 < judged.evaluate().top1 and not np.allclose(silent.probs, lied.probs)
    assert len(np.unique(words_only.probs.round(5), axis=0)) == 4, "the same words, the same answer of each head"
    assert nothing.answered.tolist() == [True] + [False] * (len(readable) - 1)


def test_one_image_per_class_is_learned_by_heart(shelf):
    given = replace(shelf, table=shelf.table.iloc[[0, -1]].assign(text=["LEAN BEEF", "MEDIUM BEEF"]))
    options = {"weights": None, "text_encoder": "char_ngrams"}
    spec = TrainSpec(model="concat", model_options=options, size=32, config=QUICK)
    judge = training.one_shot(spec, given, views=8)
    assert judge.evaluate().top1 == 1.0 and judge.folds.tolist() == [0, 0] and len(judge.models) == 1
