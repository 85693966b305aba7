"""What the notebooks share: repetitions, folds of look-alikes, heads by number of parts."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, models, workbook
from retailkit.config import UsageError
from retailkit.inference import Predictor

CLASSES = ["lean", "medium"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Two classes in four scenes each; the photos of one scene are all but equal."""
    root = tmp_path_factory.mktemp("shelf")
    rows = []
    for label in CLASSES:
        for scene in range(4):
            rng = np.random.default_rng(100 * scene + len(label))
            picture = rng.integers(0, 255, (6, 6, 3), np.uint8)
            for shot in range(3):
                path = root / f"{label}-{scene}-{shot}.png"
                Image.fromarray(picture + np.uint8(shot)).resize((64, 64), Image.Resampling.NEAREST).save(path)
                rows.append({"image": path.name, "label": label, "split": "train", "group": f"{label}-{scene}"})
    pd.DataFrame(rows).to_csv(root / "photos.csv", index=False)
    return data.load("folder", root / "photos.csv")


def test_two_folds_leave_nothing_to_learn_from(shelf):
    with pytest.raises(UsageError, match="2 folds are too few"):
        workbook.folds(shelf, count=2)


def test_folds_keep_look_alikes_together(shelf):
    dealt = workbook.folds(shelf, count=4, clusters=4)
    assert sorted(set(dealt)) == [0, 1, 2, 3]
    by_scene = pd.Series(dealt).groupby(shelf.table["group"]).nunique()
    assert (by_scene == 1).all(), "photos of one scene lie in one fold"


def test_five_seeds_test_every_picture_once(shelf):
    tested = [workbook.repetition(shelf, seed, count=4).table["split"] == "test" for seed in range(4)]
    assert (np.sum(tested, axis=0) == 1).all()
    again = workbook.repetition(shelf, 5, count=4)
    assert ((again.table["split"] == "test") == tested[1]).all()


def test_a_given_test_split_is_kept(shelf):
    table = shelf.table.assign(split=np.where(np.arange(len(shelf)) % 3 == 0, "test", "train"))
    given = data.table.ProductData("folder", table, shelf.classes, {})
    assert workbook.repetition(given, 3) is given


def test_a_bootstrap_sample_draws_training_pictures_only(shelf):
    table = shelf.table.assign(split=np.where(np.arange(len(shelf)) % 3 == 0, "test", "train"))
    given = data.table.ProductData("folder", table, shelf.classes, {})
    sample = workbook.resample(given, 5, seed=0)
    train = sample.table[sample.table["split"] == "train"]
    assert len(train) == 5 * 16 and train["image"].nunique() <= 16
    assert (sample.table[sample.table["split"] == "test"]["image"].tolist()) == table[table["split"] == "test"][
        "image"
    ].tolist()
    assert not workbook.resample(given, 5, seed=1).table.equals(sample.table)


def test_the_head_without_parts_sees_the_whole_picture_only(shelf):
    torch.manual_seed(0)
    whole = models.build("image", shelf.classes, "resnet18", weights=None).eval()
    parts = models.build("nts", shelf.classes, "resnet18", weights=None, propose=3, parts=2).eval()
    parts.image_encoder.load_state_dict(whole.image_encoder.state_dict())
    train = shelf.split("train", 64)
    test = train.with_options(rows=train.rows[::4])
    twice, once = (workbook.look(model, train, test) for model in (parts, whole))
    by_k = workbook.by_parts(parts, twice[0], [twice[1], twice[0]], [0, 2])
    (plain, _), (looked, everything) = by_k[0], by_k[2]
    assert np.allclose(plain.probs, workbook.by_parts(whole, once[0], [once[1]], [0])[0][0].probs, atol=1e-3)
    assert not np.allclose(plain.probs, looked.probs, atol=1e-3) and everything.n == len(train)
    assert looked.indices.tolist() == test.rows.tolist()


def test_contradicting_words_come_from_a_twin_that_has_some(shelf):
    table = shelf.table.iloc[[0] * 5 + [-1]].reset_index(drop=True)
    table = table.assign(label=list("aabbcd"), family=["x", "x", "x", "x", "y", ""], text=["A", "A", "", "B", "C", "D"])
    given = data.table.ProductData("folder", table, list("abcd"), {})
    chosen = workbook.contradicting(given)
    assert chosen[:2].tolist() == [3, 3] and set(chosen[2:4]) <= {0, 1}, "the twin with words"
    assert chosen[4] in (0, 1, 3, 5) and chosen[5] in (0, 1, 3, 4), "no twin: any other class with words"


@pytest.fixture(scope="module")
def readable(shelf):
    """The same photos; one scene of each class has no words, the others name the class."""
    words = ["" if "-3-" in row.image else f"{row.label} beef" for row in shelf.table.itertuples()]
    return replace(shelf, table=shelf.table.assign(text=words))


def test_cross_validation_judges_each_picture_by_a_head_that_has_not_seen_it(readable):
    network = {"text_encoder": "char_ngrams"}
    dealt = workbook.folds(readable, count=4, clusters=4)
    judged = workbook.cross_validate("concat", readable, dealt, "efficientnet_lite0", epochs=20, **network)
    assert len(judged.heads) == 4 and judged.evaluate().n == len(readable)
    heads = [judged.with_head(head) for head in judged.heads]
    row = int(np.flatnonzero(judged.folds == 2)[0])
    sample = readable.split("train", 224)[row]
    with torch.no_grad():
        alone = heads[2](sample.image[None], [sample.text]).softmax(1)[0].numpy()
    assert np.allclose(judged.evaluate().probs[row], alone, atol=0.02)
    said = readable.table["text"].iloc[workbook.contradicting(readable)].tolist()
    lied, silent, words_only, nothing = (
        judged.evaluate(workbook.encode_texts(judged.model, texts), pictures)
        for texts, pictures in (
            (said, True),
            ([""] * len(readable), True),
            (["lean"] * len(readable), False),
            (["lean", *[""] * (len(readable) - 1)], False),
        )
    )
    assert lied.top1 < judged.evaluate().top1 and not np.allclose(silent.probs, lied.probs)
    assert len(np.unique(words_only.probs.round(5), axis=0)) == 4, "the same words, the same answer of each head"
    assert nothing.answered.tolist() == [True] + [False] * (len(readable) - 1)


def test_the_share_of_boxes_inside_a_mask():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 2:6] = True
    boxes = torch.tensor([[[2, 2, 6, 6], [0, 0, 4, 4], [-4, -4, 4, 4], [6, 6, 8, 8]]])
    expected = np.mean([1.0, 4 / 16, 4 / 16, 0.0])
    assert workbook._share_inside(mask, boxes) == pytest.approx([expected])


def test_region_facts_without_masks_say_so(shelf):
    torch.manual_seed(0)
    model = models.build("nts", shelf.classes, "resnet18", weights=None, propose=3, parts=2).eval()
    split = shelf.split("train", 64)
    facts = workbook.region_facts(model, split, workbook.look(model, split)[0])
    images = torch.stack([split[i].image for i in range(len(split))])
    with torch.no_grad():
        parts = model.pooling._encode(model.image_encoder, images, model.regions(images).boxes[:, :2])
        right = (model.pooling.part_head(parts).argmax(2) == torch.tensor(split.labels)[:, None]).float().mean(1)
    assert np.allclose(facts["part_right"], right) and 0 < right.mean() < 1
    assert len(facts) == len(shelf) and facts["part_right"].between(0, 1).all()
    assert facts["on_product"].isna().all()


def both(names=CLASSES):
    """A model that sees and reads, with frozen encoders that know nothing."""
    torch.manual_seed(0)
    options = {"weights": None, "text_encoder": "char_ngrams", "freeze": True}
    return models.build("concat", names, "efficientnet_lite0", **options).eval()


def test_heads_that_share_a_predictor_share_what_it_has_encoded(monkeypatch):
    model, other = both(), both()
    other.head.linear.weight.data.neg_()
    shared, seen = workbook.SharedPredictor(model, 32), []
    encode = Predictor.encode_perturbed
    monkeypatch.setattr(
        Predictor,
        "encode_perturbed",
        lambda self, image, masks, fill: seen.append(len(masks)) or encode(self, image, masks, fill),
    )
    rng = torch.Generator().manual_seed(0)
    image, fill = torch.rand(2, 3, 32, 32, generator=rng)
    masks = torch.rand(3, 1, 32, 32, generator=rng).round()
    expected = encode(Predictor(model, 32), image, masks, fill).values
    assert torch.allclose(shared.encode_perturbed(image, masks[:2], fill).values, expected[:2], atol=1e-5)
    theirs = shared.with_model(other)
    assert torch.allclose(theirs.encode_perturbed(image, masks.flip(0), fill).values, expected.flip(0), atol=1e-5)
    assert seen == [2, 1], "only the mask that was new"
    theirs.encode_perturbed(fill, masks[:1], image)
    assert seen == [2, 1, 1], "another picture is another one"
    texts = ["LEAN", "", "LEAN"]
    read, known = theirs.encode_text(texts), model.encode_text(texts)
    assert torch.equal(read.available, known.available) and torch.allclose(read.values, known.values)
    assert theirs.model is other and shared.model is model


def test_each_picture_is_explained_by_the_head_that_has_not_seen_it(shelf, tmp_path):
    table = shelf.table.assign(text="LEAN BEEF")
    given = data.table.ProductData("folder", table, shelf.classes, {})
    model, pictures = both(), given.split("train", 32)
    heads = [copy.deepcopy(model.head) for _ in range(2)]
    heads[1].linear.weight.data.neg_()
    judge = workbook.CrossValidation(model, heads, np.arange(len(given)) % 2, None)
    shared, rows = workbook.SharedPredictor(model, 32), np.array([4, 1])
    options = {"cache": tmp_path, "classes": (0,), "budget": 8, "n_segments": 4}
    found, games = workbook.explain_unseen(judge, pictures, rows, shared, **options)
    assert set(found) == set(games) == {1, 4}
    for row, fold in ((4, 0), (1, 1)):
        with torch.no_grad():
            sample = pictures[row]
            own = judge.with_head(heads[fold])(sample.image[None], [sample.text])[0]
        assert np.allclose(found[row].logits, own, atol=1e-3)
    again, same = workbook.explain_unseen(judge, pictures, rows, shared, **options)
    keep = np.ones((1, games[1].n_segments), bool), np.ones((1, games[1].n_tokens), bool)
    assert again[1].masked_model is None and np.allclose(same[1].logits(*keep), games[1].logits(*keep), atol=1e-2)


def test_one_picture_a_class_is_learned_by_heart(shelf):
    table = shelf.table.iloc[[0, -1]].assign(text=["LEAN BEEF", "MEDIUM BEEF"])
    given = data.table.ProductData("folder", table, shelf.classes, {})
    options = {"weights": None, "text_encoder": "char_ngrams", "size": 32}
    judge = workbook.one_shot("concat", given, "efficientnet_lite0", views=8, epochs=20, **options)
    assert judge.evaluate().top1 == 1.0 and judge.folds.tolist() == [0, 0] and len(judge.heads) == 1
