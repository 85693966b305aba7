"""A checkout with tiny notebooks."""

import nbformat
import pytest

BODY = """from retailkit import runs
run = runs.start({name!r})
{code}
run.metric("value", VALUE, n=1)
run.finish()"""


@pytest.fixture
def workbook(tmp_path, monkeypatch):
    """A checkout with no notebook yet; `add(name, code)` writes one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAILKIT_RUN_DIR", raising=False)
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")  # torch need not be imported to know

    def add(name, code=""):
        knobs = 'PROFILE = "fast"  # p\nDATASET = "synthetic"  # d\nROOT = ""  # r\nSEED = 0  # s\nVALUE = 0.5  # v'
        cells = [nbformat.v4.new_code_cell(knobs), nbformat.v4.new_code_cell(BODY.format(name=name, code=code))]
        cells[0].metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
        return folder / f"{name}.ipynb"

    return add
