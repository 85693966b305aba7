"""Cells with widgets never hang a headless run.

An `Output` widget (and with it `interact`) makes nbclient send on the socket on which it awaits a reply, which could
swallow that reply (nbclient issue 312). Our explorers have none: this is the proof that they need no cure.
"""

import pytest

from retailkit import runs

EXPLORERS = """
from matplotlib.figure import Figure
from retailkit.widgets import explorer

def render(level):
    figure = Figure((1, 1))
    figure.text(0, 0, str(level))
    return figure

for _ in range(10):
    shown = explorer(render, level=range(9))
    display(shown)
    for level in (1, 2, 3):
        shown.controls["level"].value = level
    assert not shown.message.value
"""


@pytest.mark.check
@pytest.mark.timeout(1800)
def test_200_runs_of_a_notebook_with_explorers_do_not_hang(workbook):
    files = [workbook(f"{number}_{letter}", EXPLORERS) for number in range(10, 30) for letter in "abcdefghij"]
    results = runs.execute(files, jobs=2, timeout=60)
    assert [str(result) for result in results if result.status != "ok"] == [] and len(results) == 200
