"""Recipes on a small set of drawn images: which photos each member learns from, and what a second call does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retailkit import recipes, training
from retailkit.config import UsageError, UserError
from retailkit.models import BACKBONES
from retailkit.recipes import RECIPES, Member, Recipe
from retailkit.training import TrainConfig, encoded, runs

TUNED = {"mode": "finetune", "epochs": 1, "batch_size": 8}
pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = {"backbone": "timm:test_resnet", "weights": None}


@pytest.fixture
def data(tmp_path, draw):
    return draw(tmp_path, {"train": 4, "val": 3, "test": 2})


@pytest.fixture
def tiny(monkeypatch):
    """A recipe of two members; the list receives the splits that each training used."""
    members = (Member("image", SMALL, 48, TUNED, flip=True, weight=0.5), Member("matching", {}, 64, weight=2.0))
    monkeypatch.setitem(RECIPES, "tiny", Recipe("drawn", ("train", "val"), members))
    used, fit = [], runs.fit
    monkeypatch.setattr(runs, "fit", lambda *given: used.append(given[1:3]) or fit(*given))
    return used


def drawn_for(split):
    """The splits for which the photos of a split were drawn."""
    return set(split.table["image"].str.extract(r"_(train|val|test)_")[0])


def test_the_weights_of_the_final_members_are_calibrated_on_photos_that_were_held_out(data, tiny):
    weights = recipes.fit("tiny", data=data)[0].weights
    assert torch.isclose(weights[1], 4 * weights[0]), "as in the recipe"
    held = recipes.fit("tiny", hold_out=True, data=data)[0]
    photos = recipes.log_probs(held, data.split("val", 64))

    def loss(scale):
        held.weights.copy_(torch.tensor([0.5, 2.0]) * scale)
        return training.evaluate(held, photos).loss

    best = min(np.exp(np.linspace(-3, 3, 61)), key=loss)
    assert weights[0] / 0.5 == pytest.approx(best, rel=0.06)


def test_held_out_images_choose_the_weights_and_teach_nothing(data, tiny):
    ensemble, _, facts = recipes.fit("tiny", hold_out=True, data=data)
    assert [(drawn_for(train), drawn_for(val)) for train, val in tiny] == [({"train"}, {"val"})] * 2
    assert facts["hold_out"] is True and ensemble.weights.tolist() != [0.5, 2.0]


def test_the_final_members_learn_from_all_named_splits_and_a_second_call_gives_the_same(data, tiny, monkeypatch):
    (first, history, facts), (second, *_) = (recipes.fit("tiny", data=data) for _ in range(2))
    final, held = tiny[:2], tiny[2:]
    assert [drawn_for(train) for train, val in final if val is None] == [{"train", "val"}] * 2
    assert [(drawn_for(train), drawn_for(val)) for train, val in held] == [({"train"}, {"val"})] * 2
    assert facts["hold_out"] is False and facts["megabytes"] > 100
    assert (facts["size"], len(facts["seconds_of_members"]), list(history.epochs["member"])) == (64, 2, [0])
    photos, image = data.split("test", 64), torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert len(tiny) == 4 and torch.equal(first(image), second(image))
    layouts = ([value.stride() for value in model.state_dict().values()] for model in (first, second))
    assert next(layouts) == next(layouts), "in another memory layout the last digit may differ"
    kept = recipes.log_probs(first, photos)
    direct, found = (training.evaluate(first, split).probs for split in (photos, kept))
    assert np.allclose(direct, found, atol=1e-4)
    monkeypatch.setattr(encoded, "load_batches", None)
    assert torch.equal(recipes.log_probs(second, photos).image.values, kept.image.values)


def test_another_seed_is_another_training(data, tiny):
    weights = [recipes.fit("tiny", seed=seed, hold_out=True, data=data)[0].members[0].head for seed in (0, 1)]
    assert len(tiny) == 4 and not torch.equal(weights[0].linear.weight, weights[1].linear.weight)


def test_a_recipe_of_votes_with_colour_is_kept_whole(data, monkeypatch, tmp_path):
    members = (
        Member("nbnn", {"keypoints": 40}, 64, weight=4.0),
        Member("nbnn", {"detector": "xfeat", "keypoints": 40, "colour": 0.5}, 64, weight=2.0),
    )
    monkeypatch.setitem(RECIPES, "votes", Recipe("drawn", ("train",), members))
    assert [str(m) for m in members] == ["SIFT nearest-neighbour votes", "XFeat nearest-neighbour votes with colour"]
    ensemble, history, facts = recipes.fit("votes", data=data)
    path = training.save_checkpoint(ensemble, tmp_path / "votes.safetensors", history, **facts)
    loaded = training.load_checkpoint(path)[0]
    assert loaded.members[1].colour == 0.5 and loaded.members[1].descriptors.shape[2] == 64 + 3
    image = data.split("test", 64)[0].image[None]
    with torch.inference_mode():
        assert torch.equal(loaded(image), ensemble(image))


def test_errors_say_what_to_do(data, tiny):
    with pytest.raises(UsageError, match="grocery_best"):
        recipes.fit("grocery_bets", data=data)
    left = replace(data, table=data.table[data.table["split"] != "val"])
    with pytest.raises(UserError, match="no split 'val' to hold out"):
        recipes.fit("tiny", hold_out=True, data=left)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_need_no_download_and_no_test_split(name):
    recipe = RECIPES[name]
    assert "test" not in recipe.learn_from
    if recipe.dataset == "grozi120":
        assert recipe.learn_from == ("train",), "photos of shelves never teach"
    for member in recipe.members:
        TrainConfig(**member.config)
        if backbone := member.options.get("backbone"):
            assert next(iter(BACKBONES[backbone].values())).package
