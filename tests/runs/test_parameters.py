"""Values for parameters from a command line, and where a run with changed ones lies."""

import pytest

from retailkit import runs
from retailkit.config import UsageError, UserError
from retailkit.runs.parameters import typed


@pytest.fixture
def notebook(checkout):
    return checkout("10_a", 'PROFILE = "fast"\nSEED = 0\nPRETRAINED = True\nLEVEL = 0.5\nASKED = ""')


READ = {  # what is typed: the value
    "PRETRAINED=no": False,
    "PRETRAINED=TRUE": True,
    "PRETRAINED=0": False,
    "LEVEL=1e-3": 1e-3,
    "LEVEL=2": 2.0,
    "SEED= 7 ": 7,
    "ASKED=No": "No",
    "ASKED=00123456": "00123456",
    "ASKED=2024-01-01": "2024-01-01",
    "ASKED=x=y": "x=y",
    "ASKED=": "",
}
REFUSED = ["PRETRAINED=maybe", "PRETRAINED=", "SEED=1.5", "SEED=-1", f"SEED={10**20}", "SEED=True",
           "LEVEL=nan", "LEVEL=inf", "SED=1", "SEED", "PROFILE=full"]  # fmt: skip


def test_a_value_becomes_what_its_default_is_and_another_one_is_refused(notebook):
    """YAML made numbers of article numbers, False of No, dates of dates, and left 1e-3 a text."""
    for pair, expected in READ.items():
        ((_, value),) = typed(notebook, runs.parse_parameters([pair])).items()
        assert value == expected and type(value) is type(expected), pair
    for pair in REFUSED:
        with pytest.raises(UsageError, match=r"parameter .*" + pair.split("=")[0][:3]):
            typed(notebook, runs.parse_parameters([pair]))
    assert typed(notebook, {"LEVEL": 2}) == {"LEVEL": 2.0} and type(typed(notebook, {"LEVEL": 2})["LEVEL"]) is float


def test_a_changed_run_has_a_folder_that_names_what_changed(notebook):
    def place(*pairs):
        changed = runs.changed([notebook], runs.parse_parameters(pairs))
        return runs.run_dir("fast", "synthetic", changed).relative_to(notebook.parents[1] / "papermill_runs/latest")

    assert str(place("SEED=0", "PRETRAINED=true")) == "fast-synthetic", "these are the defaults"
    assert str(place("SEED=1", "PRETRAINED=no")) == "fast-synthetic,PRETRAINED=False,SEED=1"
    odd = [place("ASKED=../a"), place("ASKED=..?a"), place(f"ASKED={'a' * 300}"), place(f"ASKED={'a' * 301}")]
    assert len(set(odd)) == 4 and all(len(path.parts) == 1 and len(path.name) < 100 for path in odd)


def test_a_damaged_or_missing_notebook_is_named(notebook):
    notebook.write_text(notebook.read_text()[:40])
    with pytest.raises(UserError, match=r"10_a.ipynb: cannot be read as a notebook"):
        runs.parameters(notebook)
    notebook.unlink()
    with pytest.raises(UserError, match=r"10_a.ipynb: cannot be read \(No such file"):
        runs.parameters(notebook)
