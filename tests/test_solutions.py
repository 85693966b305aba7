"""The solutions of the exercises: each of them passes the check that its notebook prints."""

from pathlib import Path

import nbformat
import pytest

SOLUTIONS = sorted((Path(__file__).parents[1] / "docs" / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_passes_its_check(path, capsys):
    assert (path.parents[2] / "notebooks" / path.name).exists(), "a solution has the name of its notebook"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "strip the outputs"
    exec(compile("\n".join(cell.source for cell in cells), path.name, "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out.lower()
    assert "pass" in said and "not yet" not in said and "fail" not in said, said
