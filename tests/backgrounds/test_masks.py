"""Masks of photos: when they are accepted, that they are kept, and how they are made worse."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

from retailkit import backgrounds, config
from retailkit.backgrounds import degrade, iou, masked
from retailkit.backgrounds import masks as cutting
from retailkit.data import DataError, load
from retailkit.data.images import read_mask


def photo(side=96, share=0.5, seed=0):
    """A red disc on blue-green clutter, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    disc = (y - side / 2) ** 2 + (x - side / 2) ** 2 < share * side * side / np.pi
    image = rng.integers(0, 90, (side, side, 3))
    image[..., 1:] += 80
    image[disc] = rng.integers((200, 10, 10), (240, 50, 50), (int(disc.sum()), 3))
    return image.astype(np.uint8), disc


@pytest.fixture
def shop(tmp_path):
    """Discs that can be cut out, of class `disc`, and plain noise that cannot, of class `noise`."""
    for name in ("disc", "noise"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for n in range(3):
        Image.fromarray(photo(share=0.3 + 0.1 * n)[0]).save(tmp_path / "photos" / "disc" / f"{n}.png")
    noise = np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3)).astype(np.uint8)
    noise[1] = 128
    for n, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "photos" / "noise" / f"{n}.png")
    return load("folder", tmp_path / "photos", val=0, test=0)


# -- GrabCut.


def test_a_product_in_a_known_box_is_cut_out():
    image, disc = photo(share=0.2)
    (box,) = backgrounds.boxes(torch.from_numpy(disc)[None, None]).tolist()
    one, again = (cutting.grabcut(image, box) for _ in range(2))
    assert (one & disc).sum() > 0.95 * (one | disc).sum() and np.array_equal(one, again)


@pytest.fixture
def fake_grabcut(monkeypatch):
    """GrabCut finds what `finds(x, y, width, height)` returns: a mask (100,100)."""

    def install(finds):
        tries = []

        def fake(image, mask, rectangle, background, foreground, rounds, mode):
            tries.append((rectangle, rounds, mode))
            mask[finds(*rectangle)] = cv2.GC_FGD if len(tries) % 2 else cv2.GC_PR_FGD

        monkeypatch.setattr(cutting.cv2, "grabCut", fake)
        return tries

    return install


def rectangle_of(share, x=0, y=0, width=100, height=100):
    """A mask of the centre of a box, with this share of the sides."""
    mask = np.zeros((100, 100), bool)
    dy, dx = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    mask[y + dy : y + height - dy, x + dx : x + width - dx] = True
    return mask


@pytest.mark.parametrize(("side", "tries"), [(0.28, 11), (0.36, 1)])  # 0.08 and 0.12 of the box
def test_a_mask_of_a_tenth_of_its_box_is_accepted(fake_grabcut, side, tries):
    done = fake_grabcut(lambda *box: rectangle_of(side, *box))
    mask = cutting.grabcut(np.zeros((100, 100, 3), np.uint8), (20, 30, 70, 80))
    assert done == [((20, 30, 50, 50), 5, cv2.GC_INIT_WITH_RECT)] * tries, "the first try, and ten more"
    assert np.array_equal(mask, rectangle_of(side, 20, 30, 50, 50) & (tries == 1))


@pytest.mark.parametrize("box", [(0, 0, 96, 96), (20, 20, 20, 60), (10, 10, 50, 50)])
def test_a_box_without_inside_or_outside_and_a_failing_grabcut_are_rejections(monkeypatch, box):
    def fail(*arguments):
        raise cv2.error("no samples")

    monkeypatch.setattr(cutting.cv2, "grabCut", fail)
    for mask in (cutting.grabcut(photo()[0], box), cutting.central_grabcut(photo()[0])):
        assert mask.shape == (96, 96) and not mask.any()


@pytest.mark.parametrize(
    ("inner", "outer", "accepted"),
    [
        (0.5, 0.5, True),
        (0.5, 0.58, True),  # 0.25 / 0.34 = 0.74
        (0.5, 0.62, False),  # 0.65: they do not agree
        (0.3, 0.3, False),  # 0.09 of the image
        (0.34, 0.34, True),
        (0.96, 0.96, False),  # 0.92 of the image
        (0.5, 0.0, False),
        (0.0, 0.5, False),
    ],
)
def test_two_central_boxes_must_agree_and_leave_something(fake_grabcut, inner, outer, accepted):
    fake_grabcut(lambda x, y, width, height: rectangle_of({80: inner, 90: outer}[width]))
    mask = cutting.central_grabcut(np.zeros((100, 100, 3), np.uint8))
    assert np.array_equal(mask, rectangle_of(outer if accepted else 0))


# -- Masks of a data set.


def test_photos_get_masks_of_their_own_size_rejected_ones_none_and_masks_that_are_there_stay(shop, tmp_path):
    own = tmp_path / "own.png"
    Image.fromarray(photo(share=0.3)[1]).save(own)
    with_own = shop.table.assign(mask=["", "", str(own), "", ""])
    assert masked(replace(shop, table=with_own)).table["mask"][2] == str(own)
    with_masks = masked(shop)
    assert (with_masks.table["mask"] == "").tolist() == [False] * 3 + [True] * 2
    for n, path in enumerate(with_masks.table["mask"][:3]):
        true = photo(share=0.3 + 0.1 * n)[1]
        found = read_mask(path, true.shape)
        assert (found & true).sum() / (found | true).sum() > 0.9
    assert with_masks.split("train", size=32)[0].mask.any()
    assert (shop.table["mask"] == "").all(), "the data set given stays as it is"


def test_masks_are_made_once_unless_they_are_damaged_and_a_killed_run_goes_on(shop, monkeypatch):
    seen, cut = [], cutting.central_grabcut

    def counted(image):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(image.tobytes())
        return cut(image)

    monkeypatch.setattr(cutting.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(cutting, "central_grabcut", counted)
    with pytest.raises(KeyboardInterrupt):
        masked(shop)
    monkeypatch.setattr(cutting, "central_grabcut", lambda image: seen.append(image.tobytes()) or cut(image))
    first, folder = masked(shop), Path(os.environ["RETAILKIT_CACHE"])
    assert len(seen) == len(set(seen)) == 5, "each image once, rejected ones too"
    again = masked(shop)
    assert len(seen) == 5 and again.table.equals(first.table) and not [*folder.rglob("*.tmp")]
    files = {file: file.read_bytes() for file in sorted(folder.rglob("*.png"))}
    for file, content in zip(files, (b"", files[min(files)][:60], b"PK"), strict=False):
        file.write_bytes(content)
    assert masked(shop).table.equals(first.table) and len(seen) == 8
    assert {file: file.read_bytes() for file in files} == files


def test_large_photos_are_cut_out_small_and_threads_change_nothing(shop, tmp_path, monkeypatch):
    sides, cut, files = [], cutting.central_grabcut, []
    shop = shop.select(np.array([1, 2]))
    for path in shop.table["image"]:
        Image.open(path).resize((600, 300)).save(path)
    monkeypatch.setattr(cutting, "central_grabcut", lambda image: sides.append(image.shape[:2]) or cut(image))
    for threads in (1, 4):
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{threads}"))
        monkeypatch.setattr(cutting.os, "cpu_count", lambda threads=threads: threads)
        files.append([Path(p).read_bytes() for p in masked(shop).table["mask"] if p])
    assert set(sides) == {(256, 512)} and files[0] == files[1] and len(files[0]) == 2
    assert read_mask(masked(shop).table["mask"].iloc[0], (300, 600)).any()


def test_a_broken_photo_names_its_row(shop):
    Path(shop.table["image"][1]).write_bytes(b"no photo")
    with pytest.raises(DataError, match=r"row 1 of 'folder': .*1\.png: not an image"):
        masked(shop)
    Path(shop.table["image"][1]).unlink()
    with pytest.raises(DataError, match=r"row 1 of 'folder': .*1\.png: cannot be read \(No such file"):
        masked(shop)


# -- Worse masks.


def blob(height=40, width=56, seed=0):
    """Two masks: a ragged blob and a rectangle at the edge."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 4)
    masks = np.zeros((2, 1, height, width), bool)
    masks[0, 0] = field > np.quantile(field, 0.6)
    masks[1, 0, 10:, 8:30] = True
    return torch.from_numpy(masks)


@pytest.mark.parametrize("amount", [0.02, 0.06, 0.11])
def test_erosion_and_dilation_move_the_outline_evenly(amount):
    masks, pixels = blob(), amount * 56
    for mask, small, large in zip(
        masks, degrade(masks, "erosion", amount), degrade(masks, "dilation", amount), strict=True
    ):
        plane = mask[0].numpy()
        assert np.array_equal(small[0].numpy(), distance_transform_edt(plane) > pixels)
        assert np.array_equal(large[0].numpy(), distance_transform_edt(~plane) <= pixels)


@pytest.mark.parametrize("how", cutting.DEGRADATIONS)
def test_more_makes_worse_and_in_the_same_way_in_every_batch(how):
    masks = blob()
    assert torch.equal(degrade(masks, how, 0), masks)
    overlap = [iou(degrade(masks, how, amount), masks).mean() for amount in (0.02, 0.04, 0.09)]
    assert 1 > overlap[0] > overlap[1] > overlap[2] > 0
    together = degrade(masks, how, 0.05, seed=1)
    assert torch.equal(together, torch.cat([degrade(masks[i : i + 1], how, 0.05, seed=1) for i in range(2)]))
    endless = torch.stack([torch.ones(1, 9, 12, dtype=torch.bool), torch.zeros(1, 9, 12, dtype=torch.bool)])
    assert torch.equal(degrade(endless, how, 0.2), endless), "full and empty masks have no outline to move"


def test_noise_moves_the_outline_by_its_amount_both_ways_and_follows_the_seed():
    masks = torch.zeros(1, 1, 200, 200, dtype=torch.bool)
    masks[..., :100] = True
    moves = np.concatenate([degrade(masks, "noise", 0.02, seed)[0, 0].sum(1).numpy() - 100 for seed in range(8)])
    assert abs(moves.mean()) < 1 and 3 < moves.std() < 5.5  # 0.02 of 200 is 4
    assert not torch.equal(degrade(masks, "noise", 0.02, 1), degrade(masks, "noise", 0.02, 2))


def test_unknown_ways_and_negative_amounts_are_named():
    with pytest.raises(config.UsageError, match="did you mean 'erosion'"):
        degrade(blob(), "erode", 0.1)
    with pytest.raises(config.UsageError, match=r"amount=-0\.1 is negative"):
        degrade(blob(), "erosion", -0.1)
