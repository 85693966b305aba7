"""How fast the eight variants of a set of images are made, beside decoding the same images."""

import numpy as np
import pytest
import torch
from torchvision.io import decode_jpeg, encode_jpeg

from retailkit import backgrounds, data

SLOWEST = 20  # times what decoding takes
SIDE = 224
AT_ONCE = 50  # images a batch, as a model would take them


def rendered(folder, count):
    """Return (N,3,H,W) uint8, masks and labels of rendered products, some of them again and mirrored."""
    shop = data.load("synthetic", folder, per_class=(2, 0, 0), size=SIDE).split("train", SIDE)
    batch = data.collate([shop[i] for i in range(len(shop))])
    good = backgrounds.usable(batch.masks).nonzero().flatten()
    rng = np.random.default_rng(0)
    chosen = good[torch.from_numpy(rng.integers(len(good), size=count))]
    mirrored = torch.from_numpy(rng.random(count) < 0.5).view(-1, 1, 1, 1)
    both = ((batch.images[chosen] * 255).byte(), batch.masks[chosen])
    return *(torch.where(mirrored, part.flip(-1), part) for part in both), batch.labels[chosen]


@pytest.mark.benchmark
def test_variants(tmp_path, compare_cpu, quick):
    torch.set_num_threads(1)
    count = 200 if quick else 1000
    images, masks, labels = rendered(tmp_path, count)
    files = [encode_jpeg(image, 90) for image in images]
    images = images.float() / 255
    batches = [slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE)]

    def decode():
        return len([decode_jpeg(file) for file in files])

    def variant(name, rows, grounds):
        if name == "only_bg_t":
            return grounds[rows]
        donors = grounds[backgrounds.choose_donors(labels, name)[rows]] if name.startswith("mixed") else None
        return backgrounds.apply_variant(images[rows], masks[rows], name, donors)

    def make():
        grounds = torch.cat([backgrounds.apply_variant(images[rows], masks[rows], "only_bg_t") for rows in batches])
        return sum(len(variant(name, rows, grounds)) for name in backgrounds.PAPER for rows in batches) // 8

    case = f"8 variants of {count} images at {SIDE} px"
    ratio = compare_cpu("variants", case, "JPEG decoding", decode, make, lambda a, b: abs(a - b), repeat=3)
    assert ratio >= 1 / SLOWEST
