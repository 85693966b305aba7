"""Pages of a run, and what the repository keeps of it."""

import base64
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

from retailkit import runs
from retailkit.config import UserError
from retailkit.runs.record import write_record
from retailkit.runs.report import kept_text


@pytest.fixture
def place(workbook, tmp_path):
    """Return a function that writes two records, one failed, into a folder; 10_good has to show a `value` of 0.9."""
    (tmp_path / "tests").mkdir()
    entry = "{kind: bound, min: 0.9, reason: it should be high}"
    (tmp_path / "tests/expected.yml").write_text(f"fast-synthetic:\n  10_good:\n    value: {entry}\n")

    def made(**changed):
        folder = runs.run_dir("fast", "synthetic", changed)
        metrics = {"value": {"value": 0.5, "better": "higher", "n": 1}}
        write_record(folder / "10_good.json", runs.Run("10_good", {}).record | {"status": "ok", "metrics": metrics})
        failed = {"status": "failed", "error": "ValueError: <b>boom</b>"}
        write_record(folder / "20_bad.json", runs.Run("20_bad", {}).record | failed)
        workbook("10_good").rename(folder / "10_good.ipynb")
        return folder

    return made


def test_the_index_shows_expectations_and_survives_markup(place):
    folder = place()
    assert "10_good: value is 0.5, below 0.9 (bound: it should be high)" in runs.publish(folder, "fast", "synthetic")
    page, executed = (folder / "index.html").read_text(), (folder / "10_good.html").read_text()
    assert "<b>boom" not in page and "&lt;b&gt;boom" in page and "unmet" in page
    assert "cdnjs" not in executed and "unpkg" not in executed
    with pytest.raises(UserError, match="not updated, 2 expectations fail"):
        runs.publish(folder, "fast", "synthetic", update=True)


def test_expectations_are_not_judged_where_a_cause_was_switched_off(place):
    folder = place(PRETRAINED=False)
    assert len(runs.publish(folder, "fast", "synthetic", changed={"SEED": 1})) == 2
    (left,) = runs.publish(folder, "fast", "synthetic", changed={"PRETRAINED": False})
    assert "status is 'failed'" in left
    assert not runs.publish(folder, "fast", "synthetic", changed={"PRETRAINED": False}, asked=["10_good"])
    assert "PRETRAINED=False" in (folder / "index.html").read_text()


@pytest.mark.usefixtures("in_process")
def test_photos_of_others_are_never_kept(workbook, tmp_path):
    code = """
import matplotlib.pyplot as plt
run.figure("chart", plt.figure(), alt="a chart")
photo = plt.figure()
photo.text(0.5, 0.5, "somebody's product")
run.figure("photo", photo, alt="a photo", photos=True)
import ipywidgets
from retailkit import widgets
display(widgets.explorer(lambda angle: plt.figure(figsize=(1, 1)), angle=[10, 20, 30]))
from tqdm.notebook import tqdm
for _ in tqdm(range(2)):
    pass
display(ipywidgets.VBox())"""
    runs.execute([workbook("10_good", code)], dataset="grozi120", root=tmp_path)
    latest, states = Path("papermill_runs/latest/fast-grozi120"), ["angle: 20", "angle: 30"]
    runs.publish(latest, "fast", "grozi120", update=True)
    page = (latest / "10_good.html").read_text()
    assert "an explorer with controls stands here" in page and re.findall("<summary>(.*?)</summary>", page) == states
    assert page.count("An explorer stands here") == 1, "a progress bar leaves nothing behind"
    assert re.findall('<img alt="(a [^"]*)"', page) == ["a chart", "a photo"]
    assert [p.name for p in Path("figures").glob("*.png")] == ["grozi120__10_good__chart.png"]
    assert list(json.loads(Path("figures/index.json").read_text())) == ["grozi120__10_good__chart.png"]
    assert sorted(p.name for p in Path("papermill_runs/fast-grozi120").iterdir()) == ["10_good.ipynb", "10_good.json"]
    kept = Path("papermill_runs/fast-grozi120/10_good.ipynb").read_text()
    chart = base64.b64encode(Path("figures/grozi120__10_good__chart.png").read_bytes()).decode()
    assert re.findall(r"base64,([\w+/=]+)", kept) == [chart] and "image/" not in kept.replace("data:image/png", "")
    assert kept.count("the repository holds no photos") == 2 and 'ROOT = \\"\\"' in kept
    assert str(tmp_path) not in kept + Path("papermill_runs/fast-grozi120/10_good.json").read_text()
    runs.publish(latest, "fast", "synthetic", update=True)
    kept = Path("papermill_runs/fast-synthetic/10_good.ipynb").read_text()
    assert re.findall("<summary>(.*?)</summary>", kept) == states


def test_a_page_draws_formulas_without_a_script_and_its_links_lead_somewhere(place):
    folder = place()
    notebook = nbformat.read(folder / "10_good.ipynb", as_version=4)
    text = "In `$HOME`, $a_{ij} * b_k$:\n\n$$\n\\frac{1}{2}\n$$\n\n[a](../docs/glossary.md#lca), [next](20_bad.ipynb)"
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, folder / "10_good.ipynb")
    runs.publish(folder, "fast", "synthetic")
    page = (folder / "10_good.html").read_text()
    assert "<code>$HOME</code>" in page and page.count("<math") == 2 and "<em>" not in page and "<mfrac>" in page
    assert 'href="../../../docs/glossary.md#lca"' in page and 'href="20_bad.html"' in page
    assert "](../../docs/glossary.md#lca)" in kept_text(folder / "10_good.ipynb")


RESULTS = [
    runs.Result("10_good", "ok", 2.5),
    runs.Result("20_low", "ok", 1.0),
    runs.Result("30_bad", "failed", 0.25, "ValueError: \x1b[31m<b>boom|\x00"),
    runs.Result("40_same", "kept", 0.0),
]
FAILURES = ["20_low: value is 0.5, below 0.9 (bound: it should be high)", "20_low: other is nan", "3: of no notebook"]


def test_junit_has_a_case_per_notebook_and_what_is_broken_in_it(tmp_path):
    runs.write_junit(tmp_path / "run.xml", "fast-synthetic", RESULTS, FAILURES)
    suite = ElementTree.parse(tmp_path / "run.xml").getroot()
    counts = {"name": "fast-synthetic", "tests": "4", "failures": "2", "errors": "0", "skipped": "0", "time": "3.75"}
    assert suite.tag == "testsuite" and suite.attrib == counts
    assert [(case.get("name"), case.get("time"), case.findtext("failure")) for case in suite] == [
        ("10_good", "2.50", None),
        ("20_low", "1.00", "value is 0.5, below 0.9 (bound: it should be high)\nother is nan"),
        ("30_bad", "0.25", "ValueError: [31m<b>boom|"),
        ("40_same", "0.00", None),
    ]


def test_the_summary_is_appended_as_a_table_that_markup_does_not_break(tmp_path):
    (tmp_path / "summary.md").write_text("before\n\n")
    runs.append_summary(tmp_path / "summary.md", "fast-synthetic", RESULTS, FAILURES)
    assert (tmp_path / "summary.md").read_text().splitlines() == [
        *("before", "", "### fast-synthetic", "", "| notebook | seconds | result |", "|---|---|---|"),
        "| 10_good | 2 | ok |",
        "| 20_low | 1 | value is 0.5, below 0.9 (bound: it should be high)<br>other is nan |",
        "| 30_bad | 0 | ValueError: [31m&lt;b&gt;boom&#124; |",
        "| 40_same | 0 | kept |",
        "",
    ]
