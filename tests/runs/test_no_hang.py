"""Cells with widgets never hang a headless run.

An `Output` widget (and with it `interact`) makes nbclient send on the socket on which it awaits a reply, which could
swallow that reply (nbclient issue 312). Our explorers have none: this is the proof that they need no cure.
"""

import nbformat
import pytest

from retailkit import runs

EXPLORERS = """
from matplotlib.figure import Figure
from retailkit.widgets import explorer

def render(level):
    figure = Figure((1, 1))
    figure.text(0, 0, str(level))
    return figure

for _ in range(5):
    shown = explorer(render, level=range(9))
    display(shown)
    for level in (1, 2, 3):
        shown.controls["level"].value = level
    assert not shown.message.value
"""


@pytest.mark.check
@pytest.mark.timeout(1800)
def test_400_cells_with_explorers_in_40_runs_do_not_hang(workbook):
    files = [workbook(f"{number}_widgets") for number in range(10, 18)]
    for path in files:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[1:1] = [nbformat.v4.new_code_cell(EXPLORERS) for _ in range(10)]
        nbformat.write(notebook, path)
    for _ in range(5):
        results = runs.execute(files, jobs=2, fresh=True, timeout=60)
        assert {result.status for result in results} == {"ok"}, [str(r) for r in results if r.status != "ok"]
