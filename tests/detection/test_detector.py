"""A small Faster R-CNN on tiny images and without weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retailkit import detection
from retailkit.config import UsageError
from retailkit.data import synthetic
from retailkit.data.boxes import Scenes
from retailkit.detection import detector

TINY = detection.DetectorConfig(steps=12, batch_size=2, size=96, weights=None)


@pytest.fixture(scope="module")
def scenes():
    return synthetic.render_scenes(6, "overlap", size=96, seed=3)


@pytest.fixture(scope="module")
def maps(scenes):
    return detector.encode(scenes, TINY)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """One for all tests, so that the same training is done once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETAILKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def batches(monkeypatch, own_cache):
    """The images of every step that is trained, and the first weights, by whether the region's boxes are learned."""
    seen, losses = {True: [], False: []}, detector._losses

    def spy(model, given, given_maps, indices, region):
        seen[region].append((tuple(indices), {k: v.clone() for k, v in model.rpn.state_dict().items()}))
        return losses(model, given, given_maps, indices, region)

    monkeypatch.setattr(detector, "_losses", spy)
    return seen


def test_with_and_without_the_region_see_the_same_pixels_and_start_from_the_same_weights(scenes, maps, batches):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh = detection.build(len(scenes.classes), TINY).state_dict()
    (trained, history), (_, without) = (detector.fit(scenes, TINY, maps, region) for region in (True, False))
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers go on untouched"
    same = {k: torch.equal(fresh[k], v) for k, v in trained.state_dict().items() if "num_batches" not in k}
    assert all(same[k] for k in same if k.startswith("backbone.encoder"))
    assert not any(v for k, v in same.items() if k.startswith("backbone.pyramid") and k.endswith("weight"))
    images = [[indices for indices, _ in batches[region]] for region in (True, False)]
    assert images[0] == images[1] and len(images[0]) == TINY.steps
    for epoch in np.split(np.array(images[0]).ravel(), 4):
        assert sorted(epoch) == list(range(6)), "an image came again before another came once"
    first = [batches[region][0][1] for region in (True, False)]
    assert all(torch.equal(first[0][k], first[1][k]) for k in first[0])
    assert not history["total"].equals(without["total"])
    loaded, again = detector.fit(scenes, TINY, maps)
    assert len(batches[True]) == TINY.steps, "a finished training was repeated"
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in trained.state_dict().items())
    assert again.equals(history) and not loaded.training
    other = replace(scenes, boxes=[b + 1 for b in scenes.boxes])
    assert not detector.fit(other, TINY, maps)[1].equals(history)
    assert len(batches[True]) == 2 * TINY.steps


def test_a_few_steps_lower_the_total_loss_which_is_the_sum_of_four(scenes, maps):
    _, history = detector.fit(scenes, replace(TINY, steps=40, lr=2e-3), maps)
    assert history["total"].iloc[-8:].mean() < 0.8 * history["total"].iloc[:4].mean()
    np.testing.assert_allclose(history["total"], history[list(detection.LOSSES)].sum(axis=1))
    assert list(history["step"]) == list(range(1, 41))


def test_encoded_maps_give_what_torchvisions_own_forward_pass_gives(scenes, maps):
    model, _ = detector.fit(scenes, TINY, maps)
    for index, ours in enumerate(detector.detect(model, scenes, maps)):
        with torch.no_grad():
            (plain,) = model([scenes.image(index)])
        assert len(ours["boxes"]) == len(plain["boxes"]) > 0
        np.testing.assert_allclose(ours["boxes"], plain["boxes"], atol=0.05)
        np.testing.assert_allclose(ours["scores"], plain["scores"], atol=1e-3)
    model.transform.torch_choice = lambda sides: sides[0]  # it would draw from what samples anchors below
    torch.manual_seed(0)
    ours = detector._losses(model.train(), scenes, maps, [0, 1], True)
    torch.manual_seed(0)
    plain = model([scenes.image(k) for k in (0, 1)], [scenes.annotation(k) for k in (0, 1)])
    assert set(ours) == set(plain) == set(detection.LOSSES)
    assert all(ours[k].item() == pytest.approx(plain[k].item(), rel=1e-3, abs=1e-5) for k in plain)


def test_images_of_another_shape_are_boxed_in_their_own_pixels():
    def one(image, box):
        pixels = image.mul(255).byte()
        return Scenes(["milk"], [pixels], [pixels.shape[1:]], [torch.tensor([box])], [torch.tensor([1])])

    wide = one(torch.rand(3, 60, 300), [30.0, 6, 270, 54])
    square = one(torch.nn.functional.interpolate(wide.image(0)[None], (96, 96))[0], [9.6, 9.6, 86.4, 86.4])
    maps = detector.encode(wide, TINY)
    model, history = detector.fit(wide, TINY, maps)
    _, same = detector.fit(square, TINY, maps)
    np.testing.assert_allclose(history, same, rtol=1e-4)
    (found,) = detector.detect(model, wide, maps)
    assert len(found["boxes"]) and found["boxes"][:, 2].max() > 96
    assert (found["boxes"][:, 2] <= 300).all() and (found["boxes"][:, 3] <= 60).all()


def test_held_out_losses_are_repeatable_and_count_the_boxes_they_are_asked_to(scenes, maps):
    model, _ = detector.fit(scenes, TINY, maps)
    one, same = (detector.held_out_losses(model, scenes, maps) for _ in range(2))
    assert one.equals(same) and len(one) == len(scenes) and not model.training
    assert not one.equals(detector.held_out_losses(model, scenes, maps, region=True))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 200}, "size=200: use a multiple of 32 .* such as 192"),  # 7 cells of 32, and anchors 29 apart
        ({"steps": 0}, "steps=0"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(UsageError, match=says):
        detection.DetectorConfig(**options)


def test_detectors_differ_by_the_regions_boxes_alone(scenes):
    test = synthetic.render_scenes(3, "overlap", size=96, seed=9)
    both, neither = (detection.train_detectors(lambda seed: scenes, test, TINY, [0, 1], own) for own in (True, False))
    for kinds in (both, neither):
        assert kinds["with"].history["seed"].value_counts().to_dict() == {0: 12, 1: 12}
        assert len(kinds["with"].detections) == 2 and len(kinds["with"].detections[0]) == len(test)
    assert not both["with"].history.equals(both["without"].history)
    assert both["without"].history.equals(neither["with"].history)
    assert neither["with"].history.equals(neither["without"].history)
    assert both["with"].held_out["own labels"][0]["total"].gt(0).all()
