"""Whose background a image gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retailkit import config
from retailkit.backgrounds import choose_donors

LABELS = torch.arange(600) % 6
NAMES = ["mixed_same", "mixed_rand", "mixed_next"]


@pytest.mark.parametrize("name", NAMES)
def test_donors_follow_the_seed(name):
    one, same, other = (choose_donors(LABELS, name, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and one.dtype == torch.int64


def test_the_own_class_gives_but_never_the_image_itself():
    for seed in range(20):
        labels = torch.tensor([0, 1, 0, 1, 1, 2])
        donors = choose_donors(labels, "mixed_same", seed)
        assert torch.equal(labels[donors], labels)
        assert (donors != torch.arange(6))[:5].all() and donors[5] == 5  # alone in its class


def test_every_other_image_of_the_class_is_equally_likely():
    labels = torch.zeros(5, dtype=torch.int64)
    draws = np.stack([choose_donors(labels, "mixed_same", seed) for seed in range(2000)])
    for image in range(5):
        counts = np.bincount(draws[:, image], minlength=5)
        assert counts[image] == 0
        assert (np.abs(np.delete(counts, image) - 500) < 100).all()  # 5 standard deviations


def test_any_class_is_equally_likely_whatever_its_size():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    given = np.bincount(labels[choose_donors(labels, "mixed_rand", 0)], minlength=3)
    assert (np.abs(given - 1000 / 3) < 75).all()
    assert (choose_donors(labels, "mixed_rand", 0) != torch.arange(1000)).all()


def test_the_own_class_is_drawn_one_time_in_six_unless_it_is_left_out():
    own = (LABELS[choose_donors(LABELS, "mixed_rand", 0)] == LABELS).float().mean()
    assert own == pytest.approx(1 / 6, abs=0.06)
    others = LABELS[choose_donors(LABELS, "mixed_rand", 0, own_class=False)]
    assert (others != LABELS).all()
    counts = np.bincount(others[LABELS == 2], minlength=6)
    assert counts[2] == 0 and (np.delete(counts, 2) > 8).all(), "the other five equally"


def test_the_next_class_gives_and_the_first_follows_the_last():
    assert torch.equal(LABELS[choose_donors(LABELS, "mixed_next", 0)], (LABELS + 1) % 6)
    gap = torch.tensor([0, 2, 5, 0])  # classes that are not there are skipped
    assert gap[choose_donors(gap, "mixed_next", 0)].tolist() == [2, 5, 0, 2]


def test_one_unrelated_class_gives_to_all():
    donors = choose_donors(LABELS, "generic_paste", 0, from_class=4)
    assert (LABELS[donors] == 4).all() and (donors != torch.arange(600)).all() and len(set(donors.tolist())) > 60


def test_what_cannot_be_chosen_is_named():
    with pytest.raises(config.UsageError, match="variant with donors 'only_fg'"):
        choose_donors(LABELS, "only_fg")
    with pytest.raises(config.UsageError, match=r"from_class=6 .* use one of 0, 1, 2, 3, 4, 5"):
        choose_donors(LABELS, "generic_paste", from_class=6)
    for options in ({"name": "mixed_next"}, {"name": "mixed_rand", "own_class": False}):
        with pytest.raises(config.UserError, match="only one class"):
            choose_donors(torch.zeros(4), **options)
