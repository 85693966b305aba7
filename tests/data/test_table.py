"""The contract of a data set: everything moves together, errors name file, row and cure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from retailkit.config import UsageError
from retailkit.data import table as contract
from retailkit.data.table import DataError, ProductData, Word, make_table, write_truth


def make_data(rows: list[dict], **columns) -> ProductData:
    frame = make_table([{"label": "a", "split": "train"} | row for row in rows]).assign(**columns)
    return ProductData("mine", frame, sorted(set(frame["label"])), {"missing_test": "shoot some"})


@pytest.mark.parametrize("content", [b"not a picture", None])
def test_a_broken_picture_names_file_row_and_cure(tmp_path, content):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    if content:
        (tmp_path / "bad.jpg").write_bytes(content)
    data = make_data([{"image": str(tmp_path / name)} for name in ("good.png", "bad.jpg")])
    says = r"row 1 of 'mine': .*bad\.jpg: .*; (replace the file|correct the path)"
    with pytest.raises(DataError, match=says) as error:
        data.split("train", size=16)[1]
    assert "\n" not in str(error.value)


def marked(tmp_path, height: int, width: int, box: tuple[int, int, int, int]) -> ProductData:
    """A picture whose mask, truth plane and words all mark the same box, white on black."""
    x0, y0, x1, y1 = box
    plane = np.zeros((height, width), dtype=bool)
    plane[y0:y1, x0:x1] = True
    Image.fromarray(np.repeat(plane[..., None] * np.uint8(255), 3, axis=-1)).save(tmp_path / "x.png")
    Image.fromarray(plane * np.uint8(255)).save(tmp_path / "m.png")
    planes = {"twin_patch": plane, "shadow": ~plane, "reflection": plane & False}
    facts = {"words": [["LEAN", list(box), True]], "pose": "front", "background": "dairy", "lighting": "day"}
    write_truth(tmp_path / "t.png", planes, facts)
    paths = {"image": str(tmp_path / "x.png"), "mask": str(tmp_path / "m.png"), "truth": str(tmp_path / "t.png")}
    return make_data([paths], words=[[Word("LEAN", box, 0.9)]])


def covered(mask: torch.Tensor) -> tuple[int, ...]:
    ys, xs = torch.nonzero(mask[0], as_tuple=True)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("fit", contract.FITS)
@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (64, 64)])
def test_image_mask_truth_and_words_move_together(tmp_path, fit, shape):
    box = (shape[1] // 2 - 8, shape[0] // 2 - 10, shape[1] // 2 + 9, shape[0] // 2 + 6)
    dataset = marked(tmp_path, *shape, box).split("train", size=64, fit=fit)
    sample = dataset[0]
    where = covered(sample.mask)
    white = covered(sample.image[:1] > 0.5) if fit != "pad" else covered(sample.image[:1] > 0.75)
    assert np.abs(np.subtract(white, where)).max() <= 1
    assert torch.equal(sample.truth.twin_patch, sample.mask) and not sample.truth.reflection.any()
    for words in (sample.words, sample.truth.words):
        assert np.abs(np.subtract(words[0].box, where)).max() <= 1.01
    assert sample.words[0].confidence == 0.9 and sample.truth.words[0].discriminative
    assert (sample.truth.pose, sample.truth.background, sample.truth.lighting) == ("front", "dairy", "day")
    picture_only = dataset.with_options(reads=())[0]
    assert picture_only.mask is None and picture_only.truth is None and picture_only.words == sample.words


def test_a_random_transform_moves_them_together_too(tmp_path):
    augment = v2.Compose([v2.RandomHorizontalFlip(p=1), v2.Resize((64, 64), antialias=True)])
    sample = marked(tmp_path, 64, 64, (4, 10, 20, 30)).split("train", size=64).with_options(augment=augment)[0]
    assert covered(sample.mask) == (44, 10, 60, 30) and sample.words[0].box == (44, 10, 60, 30)


def test_a_word_outside_the_crop_has_an_empty_box_and_padding_is_grey(tmp_path):
    sample = marked(tmp_path, 40, 120, (0, 0, 10, 10)).split("train", size=64, fit="crop")[0]
    assert sample.words[0].box[0] == sample.words[0].box[2] and not sample.mask.any()
    sample = marked(tmp_path, 40, 80, (0, 0, 80, 40)).split("train", size=64, fit="pad")[0]
    assert torch.allclose(sample.image[:, 2, 32], torch.tensor(128 / 255)) and not sample.mask[0, 2, 32]
    assert covered(sample.mask) == (0, 16, 64, 48)


def test_a_picture_without_truth_inside_is_an_error(tmp_path):
    data = marked(tmp_path, 8, 8, (0, 0, 4, 4))
    Image.new("L", (8, 8)).save(tmp_path / "t.png")
    with pytest.raises(DataError, match=r"t\.png: no ground truth inside"):
        data.split("train", size=16)[0]


def test_samples_stack_into_batches(tmp_path):
    dataset = marked(tmp_path, 32, 32, (0, 0, 8, 8)).split("train", size=32)
    batch = contract.collate([dataset[0], dataset[0]])
    assert batch.images.shape == (2, 3, 32, 32) and batch.masks.shape == (2, 1, 32, 32) and len(batch) == 2
    assert batch.images.dtype == torch.float32 and batch.images.min() >= 0 and batch.images.max() <= 1
    (tmp_path / "y").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "y" / "x.png")
    bare = make_data([{"image": str(tmp_path / "y" / "x.png")}]).split("train", size=32)[0]
    assert contract.collate([dataset[0], bare]).masks is None and bare.truth is None


def test_splits_join_and_unknown_or_empty_ones_raise(tmp_path):
    data = make_data([{"split": "train"}, {"split": "val", "label": "b"}, {"split": "train"}])
    assert len(data.split("train+val")) == 3 and data.splits == ["train", "val"]
    assert data.split("val").labels.tolist() == [1]
    with pytest.raises(DataError, match=r"no 'test' split \(it has: train, val\); shoot some"):
        data.split("test")
    with pytest.raises(UsageError, match="did you mean 'train'"):
        data.split("trian")
    with pytest.raises(UsageError, match="unknown fit 'squash'"):
        data.split("train", fit="squash")
    assert data.split("train", fit="squeeze").fit == "stretch", "the word in older checkpoints"
    with pytest.raises(UsageError, match="too small"):
        data.split("train", size=4)
