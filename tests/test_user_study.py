"""The code of docs/user_study.md runs, and its table says what the code says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from retailkit import models, plots
from retailkit.data.table import Word
from retailkit.explain import lime

PAGE = Path(__file__).parents[1] / "docs" / "user_study.md"
CLASSES = ["class of oats", "class of rye"]


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


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    torch.manual_seed(0)
    options = {"backbone": "timm:test_resnet", "weights": None, "text_encoder": "char_ngrams"}
    model = models.build("concat", CLASSES, **options)
    model.text_encoder.prepare(["LEAN BEEF", "RYE BREAD"])
    words = [Word("LEAN", (2, 2, 20, 10)), Word("BREAD", (2, 20, 30, 30))]
    path = tmp_path_factory.mktemp("study") / "photo.safetensors"
    lime.explain(model.eval(), torch.rand(3, 64, 64), words, budget=32, classes="top1").save(path)
    return path


@pytest.mark.parametrize("condition", ["none", "image", "image and words", "random"])
def test_a_stimulus_never_names_the_answer(code, explained, condition):
    figure = code["stimulus"](explained, condition, 7)
    figure.canvas.draw()
    said = " ".join(text.get_text() for text in figure.findobj(plots.plt.Text))
    plots.plt.close(figure)
    assert not any(name in said for name in CLASSES)
    assert ("LEAN" in said) == (condition in ("image and words", "random"))


def test_the_control_has_the_same_weights_in_other_places(code, explained):
    found = lime.LocalExplanation.load(explained)
    dealt = code["shuffled"](found, 7)
    assert np.array_equal(np.sort(dealt.image_weights), np.sort(found.image_weights))
    assert not np.array_equal(dealt.image_weights, found.image_weights)
    assert np.array_equal(dealt.image_weights, code["shuffled"](found, 7).image_weights)
