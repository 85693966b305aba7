"""Names with their nearest neighbour, profiles, and the device."""

import pytest
import torch

from retailkit import config
from retailkit.config import UsageError


def test_an_unknown_name_gives_the_nearest_and_all_others():
    with pytest.raises(UsageError, match=r"unknown profile 'fsat'; did you mean 'fast'\? \(known: fast, full\)"):
        config.profile("fsat")


@pytest.mark.parametrize("chosen", ["gpu", "meta", "cuda:77", "cuda:x", "cpu:1:2", " "])
def test_a_device_that_is_not_there_is_one_message(chosen, monkeypatch):
    monkeypatch.setenv("RETAILKIT_DEVICE", chosen)
    with pytest.raises(UsageError, match=r"RETAILKIT_DEVICE=.* is no device of this machine; set it to cpu, cuda"):
        config.device()


def test_the_chosen_device_is_taken_and_without_a_choice_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.delenv("RETAILKIT_DEVICE", raising=False)
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert config.device() == best
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu:0")
    assert config.device() == "cpu:0"


def test_data_are_looked_for_where_the_user_says_then_in_the_cache(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv("RETAILKIT_DATA", str(tmp_path / "data"))
    assert config.data_root("shop") == tmp_path / "cache" / "data" / "shop"
    (tmp_path / "data" / "shop").mkdir(parents=True)
    assert config.data_root("shop") == tmp_path / "data" / "shop"
