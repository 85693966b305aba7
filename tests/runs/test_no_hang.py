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
    files = [workbook(f"{number}_widgets", EXPLORERS) for number in range(10, 30)]
    for _ in range(10):
        results = runs.execute(files, jobs=2, fresh=True, timeout=60)
        assert {result.status for result in results} == {"ok"}, [str(r) for r in results if r.status != "ok"]
