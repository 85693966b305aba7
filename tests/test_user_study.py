"""The code of docs/user_study.md runs, and its table says what the code says."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retailkit import plots

PAGE = Path(__file__).parents[1] / "docs" / "user_study.md"


@pytest.fixture(scope="module")
def code():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        exec(block, names)
    return names


def test_the_table_of_people_is_computed(code):
    rows = re.findall(r"^\| (0\.\d+) \| (\d+) \((\d+)\) \| (\d+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert len(rows) == 6
    for gain, photos, of, people in rows:
        assert code["people"](float(gain), photos=int(photos), of=int(of)) == int(people)
    assert code["people"](0.03) is None


@pytest.mark.parametrize("condition", ["none", "image", "image and words", "random"])
def test_a_stimulus_never_names_the_answer(code, made_up_explanation, tmp_path, condition):
    explained = made_up_explanation()
    explained.save(tmp_path / "photo.safetensors")
    figure = code["stimulus"](tmp_path / "photo.safetensors", condition, 7)
    figure.canvas.draw()
    said = " ".join(text.get_text() for text in figure.findobj(plots.plt.Text))
    plots.plt.close(figure)
    assert not any(name in said for name in explained.classes)
    assert ("LEAN" in said) == (condition in ("image and words", "random"))


def test_the_control_has_the_same_weights_in_other_places(code, made_up_explanation):
    found = replace(made_up_explanation(), image_weights=np.arange(24.0)[None])
    dealt = code["shuffled"](found, 7)
    assert np.array_equal(np.sort(dealt.image_weights), np.sort(found.image_weights))
    assert not np.array_equal(dealt.image_weights, found.image_weights)
    assert np.array_equal(dealt.image_weights, code["shuffled"](found, 7).image_weights)
