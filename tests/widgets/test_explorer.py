"""Explorers redraw when a control moves and name their errors."""

import io

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
