"""The explanation tool: how long after the click something is on screen, with the default model.

`seconds` is until the coarse answer of the first 32 masks, `baseline_seconds` until the explanation is done. Both are
counted from the click until Python has sent the panel. Nothing is kept from one explanation for the next.
"""

import threading

import pytest

from retailkit import widgets
from retailkit.widgets.start import explanation_desk


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("all_cores")
def test_app(compare, quick):
    tool = widgets.ExplanationTool(*explanation_desk(names=["score_fusion"]))
    shown = threading.Event()
    tool.panels[0].foot.observe(lambda change: "R²" in change["new"] and shown.set(), names="value")

    def until_preview():
        tool.stop()
        shown.clear()
        tool.controls["explain"].click()
        assert shown.wait(2), "seconds until something is on screen"

    def until_done():
        tool.stop()
        tool.controls["explain"].click()
        tool._worker.join(10)
        assert not tool._worker.is_alive()

    tool.explain()  # the first call of a session warms libraries up; users wait for it while the page opens
    case = "a coarse answer after the click, 32 masks of 160 px, score fusion of lite0 and MiniLM"
    repeat = 3 if quick else 5
    compare("app", case, "the explanation is done, 160 masks", until_done, until_preview, repeat=repeat)
