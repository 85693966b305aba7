"""The notebooks: their anatomy, and what they must show when they are run."""

import ast
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from retailkit import runs
from retailkit.runs import report
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.prepare import prepare

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NO_METHOD = ["00_welcome", "10_data_exploration", "80_explanation_tool", "90_results"]  # teach none of their own
EXPECTED = expectations(ROOT / "tests" / "expected.yml")["fast-synthetic"]
DIRECTIONS = [
    (notebook, metric, entry)
    for notebook, metrics in EXPECTED.items()
    for metric, entry in metrics.items()
    if entry["kind"] == "direction"
]


METHODS = [path for path in NOTEBOOKS if path.stem not in NO_METHOD]
HEADINGS = ["## The method", "## Explore", "## Checks", "## Exercises", "## References"]


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def notebook(request):
    """A path, and its cells."""
    return request.param, read(request.param).cells


def sources(cells, kind):
    return [cell.source for cell in cells if cell.cell_type == kind]


def knobs(cells):
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def places(cells):
    """Headings of the second level, and in which cell each is."""
    return {line: n for n, cell in enumerate(cells) for line in cell.source.splitlines() if line.startswith("## ")}


def test_notebooks_are_stripped_and_formatted(notebook):
    path, cells = notebook
    assert len({cell.id for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert read(path).metadata.kernelspec.name == "python3"


def test_notebooks_have_the_anatomy(notebook):
    path, cells = notebook
    first, code, headings = cells[0].source, sources(cells, "code"), places(cells)
    assert first.startswith(f"# {path.stem[:2]} · ") and "*Inputs:*" in first and "*Time:*" in first
    assert re.search(r"^\*\*[^*]+\?\*\*$", first, re.M), "one question in one sentence"
    assert cells[1].source.startswith(("import", "from"))
    assert code[1] == knobs(cells).source and code[2].startswith(f'run = runs.start("{path.stem}")')
    numbers = [int(number) for heading in headings for number in re.findall(r"^## (\d+)\. ", heading)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS[path.stem in NO_METHOD :]
    assert sources(cells[: headings["## Exercises"]], "code")[-1] == "run.finish()"


def test_pages_can_draw_every_formula(notebook):
    for text in sources(notebook[1], "markdown"):
        drawn = report.FORMULA.sub(report.mathml, text)
        assert not re.search(r"<m[io][^>]*>\\\\", drawn), f"a command that latex2mathml does not know: {text}"


@pytest.mark.parametrize("notebook", METHODS, ids=lambda p: p.stem, indirect=True)
def test_the_method_is_an_equation_a_diagram_and_plain_code_that_agrees_with_the_package(notebook):
    _, cells = notebook
    headings = places(cells)
    first, last = headings["## The method"], next(n for h, n in headings.items() if h.startswith("## 1. "))
    code = sources(cells[first:last], "code")
    assert "$$" in "".join(sources(cells[first : last + 1], "markdown"))
    assert any("plots.diagram(" in source or "run.figure(" in source for source in code)
    assert any(re.search(r"^def |^    def ", source, re.M) for source in code) and "assert" in "".join(code)


def test_parameters_are_commented_literals(notebook):
    path, cells = notebook
    tree = ast.parse(knobs(cells).source)
    names = [node.targets[0].id for node in tree.body]
    assert names[:4] == ["PROFILE", "DATASET", "ROOT", "SEED"]
    for node in tree.body:
        ast.literal_eval(node.value)
    offered = runs.parameters(path)
    assert list(offered) == names, "papermill cannot parse a line; keep = and : out of its comment"
    assert all(p["help"] for p in offered.values())


def test_no_measured_number_is_typed_into_prose(notebook):
    for text in sources(notebook[1], "markdown"):
        body = re.sub(r"`[^`]*`|^\|.*\||\(.*?\)|95 %", "", text, flags=re.M)
        assert not re.search(r"\b\d+(\.\d+)? ?%|\b0\.\d{2,}", body.split("## Exercises")[0]), text


# -- Committed records.


def record(name, run="fast-synthetic"):
    return runs.read_record(ROOT / "papermill_runs" / run / f"{name}.json")


def test_the_readme_lists_every_notebook_with_its_question_and_time():
    row = r"^\| \[`(\d\d_\w+)`\]\(papermill_runs/fast-synthetic/(\w+)\.ipynb\) \| (.+?) \| (\d+) s \| [^|]+ \|$"
    rows = re.findall(row, (ROOT / "README.md").read_text(), re.M)
    assert [name for name, *_ in rows] == [path.stem for path in NOTEBOOKS]
    for path, (name, linked, question, seconds) in zip(NOTEBOOKS, rows, strict=True):
        assert linked == name and f"**{question}**" in read(path).cells[0].source
        took = record(name)["seconds"]
        assert took / 3 < int(seconds) < max(3 * took, 10), f"{name} took {took:.0f} s; correct its row"


def test_the_sentences_of_the_readme_say_the_numbers_of_the_records():
    number, source = r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", r"`([\w-]+)/(\w+)\.json` `(\w+)`"
    sentences = re.findall(rf"\b{number}[\w\s]+\({source}\)", (ROOT / "README.md").read_text())
    assert len(sentences) == 2
    for *told, run, notebook, name in sentences:
        metric = record(notebook, run)["metrics"][name]
        assert told == [f"{x:.3f}" for x in (metric["value"], *metric["interval"])], f"{run} {name}"


@pytest.mark.parametrize("model", ["image", "text", "embracenet"])
def test_a_model_has_one_accuracy_in_all_notebooks_that_show_it(model):
    metrics = [record(path.stem)["metrics"] for path in NOTEBOOKS if path.stem[0] in "45"]
    shown = [found[f"top1_{model}"]["value"] for found in metrics if f"top1_{model}" in found]
    assert len(shown) > 1 and shown == pytest.approx([shown[0]] * len(shown))


def test_the_committed_records_show_what_they_must():
    assert list(EXPECTED) == [path.stem for path in NOTEBOOKS]
    for name, expected in EXPECTED.items():
        assert check_record(record(name), expected) == [], name


# -- Executed notebooks.

# What the notebooks that take longest run with here, to show the same with less: fewer photos, masks, classes, epochs.
SMALLER = {
    "20_training": {"BACKBONES": "efficientnet_lite0"},
    "30_bag_of_tricks": {"DETECTORS": "sift"},
    "32_capture_conditions": {"CURVE": 4},
    "33_best_recogniser": {"EPOCHS": 1, "SIDE": 96},
    "50_saliency": {"PHOTOS": 16},
    "51_local_explanations": {"PHOTOS": 8, "BUDGET": 56},
    "52_global_explanations": {"CLASSES": 4, "TWINS": 1, "PHOTOS": 6},
    "60_background_variants": {"FOREGROUNDS": 24},
    "61_background_factors": {"BACKBONES": "efficientnet_lite0"},
}
# Runs first: an explorer draws two of the five states that its page shows, each with another control moved; an error
# there fails the notebook.
FEWER_STATES = """
import sys
import retailkit.widgets
sys.modules["retailkit.widgets.explorer"].STATES = 2
"""
# Runs last: each explorer draws once more what it opened with. A function that remembers anything shows here.
DRAW_AGAIN = """
import gc
from retailkit.plots import png
from retailkit.widgets.explorer import Explorer

explorers = [thing for thing in gc.get_objects() if type(thing) is Explorer]
for explorer in explorers:
    first = {name: widget.value for name, widget in explorer.controls.items()}
    assert explorer.picture.value == png(explorer.render(**first)), f"drawn again it differs: {first}"
print(len(explorers), "explorers drawn again")
"""


@pytest.fixture(scope="module")
def run_all(tmp_path_factory):
    """Execute every notebook once, as `make run` does; returns results by name and the folder they lie in.

    The folder has the name of the committed run, whose times decide the order: in another order notebooks that share
    a training start side by side, and both do it.
    """
    output, driven = tmp_path_factory.mktemp("run") / "fast-synthetic", tmp_path_factory.mktemp("notebooks")
    for path in NOTEBOOKS:
        content = read(path)
        for name, value in SMALLER.get(path.stem, {}).items():
            cell = knobs(content.cells)
            cell.source, count = re.subn(rf"^{name} = \S+", f"{name} = {value!r}", cell.source, flags=re.M)
            assert count == 1, f"{path.stem} has no parameter {name}"
        content.cells.insert(0, nbformat.v4.new_code_cell(FEWER_STATES))
        content.cells.append(nbformat.v4.new_code_cell(DRAW_AGAIN))
        nbformat.write(content, driven / path.name)
    files = [driven / path.name for path in NOTEBOOKS]
    results = runs.execute(files, jobs=2, output=output, prepare=prepare)
    return {result.notebook: result for result in results}, output


@pytest.fixture(scope="module")
def causes_off(request, tmp_path_factory):
    """Execute, two at a time, notebooks with causes off, once for checks of the same causes; futures by check.

    They go without the section "Explore", which no check needs.
    """
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    checks = [one for one in params if one.keys() == {"name", "metric", "entry"}]
    asked = [(one["name"], one["metric"], one["entry"]["switched_off"]) for one in checks]

    def execute(name, causes):
        folder, content = tmp_path_factory.mktemp(name), read(ROOT / "notebooks" / f"{name}.ipynb")
        headings = places(content.cells)
        del content.cells[headings["## Explore"] : headings["## Checks"]]
        nbformat.write(content, folder / f"{name}.ipynb")
        given = SMALLER.get(name, {}) | causes
        (result,) = runs.execute([folder / f"{name}.ipynb"], extra=given, jobs=1, output=folder / "run")
        assert result.status == "ok", result.error
        return runs.read_record(folder / "run" / f"{name}.json")

    prepare()
    done = {}
    with ThreadPoolExecutor(2) as pool:
        for name, _, causes in asked:
            if (name, str(causes)) not in done:
                done[name, str(causes)] = pool.submit(execute, name, causes)
        yield {(name, metric): done[name, str(causes)] for name, metric, causes in asked}


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.timeout(3600)  # half an hour on two slow cores; a cell that hangs ends by its own limit
class TestExecution:
    """One worker executes them all, since they share what was rendered, read and trained."""

    @pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
    def test_a_notebook_runs_and_shows_what_it_must(self, run_all, name):
        results, output = run_all
        assert results[name].status == "ok", results[name].error
        made = runs.read_record(output / f"{name}.json")
        assert made["parameters"].keys() | {"ROOT"} == runs.parameters(ROOT / "notebooks" / f"{name}.ipynb").keys()
        assert check_record(made, EXPECTED[name]) == []

    @pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if "widgets.explorer(" in path.read_text()])
    def test_its_explorer_remembers_nothing(self, run_all, name):
        _, output = run_all
        drawn = read(output / f"{name}.ipynb").cells[-1].outputs[-1]
        assert re.fullmatch(r"[1-9] explorers drawn again\n", drawn.text)

    def test_the_pages_are_small_and_complete(self, run_all):
        _, output = run_all
        assert runs.publish(output, "fast", "synthetic", seconds=1.0) == []
        index = (output / "index.html").read_text()
        for path in NOTEBOOKS:
            assert f"{path.stem}.html" in index and (output / f"{path.stem}.html").is_file()
            assert len(report.kept_text(output / f"{path.stem}.ipynb")) < report.NOTEBOOK_BYTES
        figures = list((output / "figures").iterdir())
        assert len(figures) > 10 and all(p.stat().st_size < 200_000 for p in figures)

    @pytest.mark.check
    @pytest.mark.parametrize("name, metric, entry", DIRECTIONS, ids=[f"{n[:2]}-{m}" for n, m, _ in DIRECTIONS])
    def test_a_check_turns_red_when_its_cause_is_off(self, causes_off, name, metric, entry):
        broken = check_record(causes_off[name, metric].result(), {metric: entry})
        assert any(line.startswith(f"{metric} is ") for line in broken), "the check holds without its cause"
