"""The solutions of the exercises: each of them passes the check that its notebook prints."""

import contextlib
import io
from pathlib import Path

import nbformat
import pytest

SOLUTIONS = sorted((Path(__file__).parents[1] / "docs" / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_passes_its_check(path):
    assert (path.parents[2] / "notebooks" / path.name).exists(), "a solution has the name of its notebook"
    printed = io.StringIO()
    space = {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert not cell.outputs, "strip the outputs"
                exec(compile(cell.source, path.name, "exec"), space)
    said = printed.getvalue().lower()
    assert "pass" in said and "not yet" not in said and "fail" not in said, said
