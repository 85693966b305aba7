"""Explorers redraw when a control moves and name their errors."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from retailkit import plots, widgets


def draw(level, invert=False):
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.imshow(np.full((4, 4), 10 - level if invert else level), vmin=0, vmax=10, cmap="gray")
    ax.set_axis_off()
    return figure


def pixels(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_an_explorer_shows_what_its_render_function_draws_or_the_error():
    def fragile(level, invert):
        if level == 7:
            raise ValueError("no <such> class")
        return draw(level, invert)

    viewer = widgets.explorer(fragile, level=range(10), invert=False)
    for level, invert in ((0, False), (5, True)):
        viewer.controls["level"].value, viewer.controls["invert"].value = level, invert
        assert np.array_equal(pixels(viewer.picture.value), pixels(plots.png(draw(level, invert))))
    viewer.controls["level"].value = 7
    assert "no &lt;such&gt; class" in viewer.message.value
    viewer.controls["level"].value = 1
    assert viewer.message.value == "" and not plt.get_fignums()


@pytest.mark.parametrize(
    "values, states",
    [
        ({"level": range(10), "invert": False}, [(1, False), (0, True), (2, False), (3, False), (4, False)]),
        ({"level": [1, 2], "invert": True}, [(2, True), (1, False)]),
    ],
)
def test_a_page_without_a_kernel_shows_some_other_states(monkeypatch, values, states):
    """Each moves one control away from where it stands; the runner asks for them, an open notebook does not."""
    assert "text/html" not in widgets.explorer(draw, **values)._repr_mimebundle_()
    monkeypatch.setenv("RETAILKIT_RUN_DIR", "anywhere")
    viewer = widgets.explorer(draw, **values)
    before, page = viewer.controls["level"].value, viewer._repr_mimebundle_()["text/html"]
    said = re.findall("<summary>(.*?)</summary>", page)
    assert said == [f"level: {level}, invert: {invert}" for level, invert in states]
    assert page.count("<details open>") == 1 and "<script" not in page
    shown = [pixels(base64.b64decode(code)) for code in re.findall('base64,([^"]+)', page)]
    for picture, state in zip(shown, states, strict=True):
        assert np.abs(picture - pixels(plots.png(draw(*state)))).mean() < 3, "but for the compression"
    assert viewer.controls["level"].value == before, "the controls stay as they are"
