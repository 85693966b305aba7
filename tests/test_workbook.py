"""What the notebooks share: repetitions, folds of look-alikes, heads by number of parts."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, models, training, workbook
from retailkit.inference import Predictor
from retailkit.models import ProductClassifier

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
    parts = (model.image_encoder, model.pooling, model.text_encoder)
    trained = [ProductClassifier(model.classes, head, *parts, build_args=model.build_args).eval() for head in heads]
    judge = training.CrossValidation(trained, np.arange(len(given)) % 2, None)
    shared, rows = workbook.SharedPredictor(model, 32), np.array([4, 1])
    options = {"cache": tmp_path, "classes": (0,), "budget": 8, "n_segments": 4}
    found, games = workbook.explain_unseen(judge, pictures, rows, shared, **options)
    assert set(found) == set(games) == {1, 4}
    for row, fold in ((4, 0), (1, 1)):
        with torch.no_grad():
            sample = pictures[row]
            own = trained[fold](sample.image[None], [sample.text])[0]
        assert np.allclose(found[row].logits, own, atol=1e-3)
    again, same = workbook.explain_unseen(judge, pictures, rows, shared, **options)
    keep = np.ones((1, games[1].n_segments), bool), np.ones((1, games[1].n_tokens), bool)
    assert again[1].masked_model is None and np.allclose(same[1].logits(*keep), games[1].logits(*keep), atol=1e-2)
