"""Explorers redraw when a control moves and name their errors."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from retailkit import plots, widgets


def draw(level, invert):
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.imshow(np.full((4, 4), 10 - level if invert else level), vmin=0, vmax=10, cmap="gray")
    ax.set_axis_off()
    return figure


def pixels(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


@pytest.mark.parametrize("state", [{"level": 0, "invert": False}, {"level": 5, "invert": True}])
def test_an_explorer_shows_what_its_render_function_draws(state):
    viewer = widgets.explorer(draw, level=range(10), invert=False)
    for name, value in state.items():
        viewer.controls[name].value = value
    assert np.array_equal(pixels(viewer.picture.value), pixels(plots.png(draw(**state))))
    assert not plt.get_fignums()


def test_an_explorer_names_an_error_and_recovers():
    def fragile(choice):
        if choice == "bad":
            raise ValueError("no <such> class")
        return draw(3, False)

    viewer = widgets.explorer(fragile, choice=["good", "bad"])
    viewer.controls["choice"].value = "bad"
    assert "no &lt;such&gt; class" in viewer.message.value
    viewer.controls["choice"].value = "good"
    assert viewer.message.value == ""


def test_a_page_without_a_kernel_shows_some_other_states(monkeypatch):
    """Each moves one control away from where it stands; the runner asks for them, an open notebook does not."""
    viewer = widgets.explorer(draw, level=range(10), invert=False)
    assert "text/html" not in viewer._repr_mimebundle_()
    monkeypatch.setenv("RETAILKIT_RUN_DIR", "anywhere")
    viewer = widgets.explorer(draw, level=range(10), invert=False)
    page = viewer._repr_mimebundle_()["text/html"]
    assert re.findall("<summary>(.*?)</summary>", page) == [
        f"level: {level}, invert: {invert}"
        for level, invert in [(1, False), (0, True), (2, False), (3, False), (4, False)]
    ]
    assert page.count("<details open>") == 1 and "<script" not in page
    pictures = [base64.b64decode(code) for code in re.findall('base64,([^"]+)', page)]
    for picture, level, invert in zip(pictures, (1, 0, 2, 3, 4), (False, True, False, False, False), strict=True):
        off = pixels(picture).astype(int) - pixels(plots.png(draw(level, invert)))
        assert np.abs(off).mean() < 3, "but for the compression"
    assert viewer.controls["level"].value == 0, "the controls stay as they are"


def test_an_explorer_with_few_states_shows_each_once():
    page = widgets.explorer(draw, level=[1, 2], invert=True).page()
    assert re.findall("<summary>(.*?)</summary>", page) == [
        "level: 2, invert: True",
        "level: 1, invert: False",
    ]
