"""Turn a finished run into pages: executed notebooks as HTML, one index, and what the repository keeps."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from retailkit.cache import replacing
from retailkit.config import UserError, home
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.record import is_notebook, read_records, write_record
from retailkit.runs.runner import Result

NOTEBOOK_BYTES = 1_000_000
# nbconvert's loader of mermaid diagrams, which asks a CDN.
DIAGRAM_LOADER = re.compile(r"<script[^>]*>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", re.S)
# Formulas as the notebooks write them; code between backticks is none.
FORMULA = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|(?<!\\)\$(?P<inline>[^$]+?)\$", re.S)
PAGE_LINK = re.compile(r"\]\((\d\d_\w+)\.ipynb\)")
NO_XML = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters that XML forbids
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_NOTE = "<em>An explorer stands here when the notebook is open in Jupyter.</em>"
PHOTO_NOTE = "<em>A figure with photos stands here when the notebook runs; the repository holds no photos.</em>"
IMAGE_DATA = re.compile(r"data:image/[\w.+-]+;base64,([\w+/=]+)")
STATES_NOTE = (
    "<em>When the notebook is open in Jupyter, an explorer with controls stands here. Some of its pictures:</em>"
)


def publish(
    folder: Path,
    profile: str,
    dataset: str,
    update: bool = False,
    seconds: float | None = None,
    changed: Mapping[str, Any] | None = None,
    asked: Sequence[str] | None = None,
) -> list[str]:
    """Write HTML pages and the index of the run of a profile on a data set.

    Args:
        folder: where the records and executed notebooks lie.
        profile: name.
        dataset: name.
        update: also refresh the copies that the repository keeps; only a run without failures may.
        seconds: wall time of the whole run, for the page.
        changed: parameters with other values than their defaults. Expectations say what holds with all causes
            switched on: the page shows which are not met, and they count as failures where only the seed is changed.
        asked: names of the notebooks that were to run; None takes all.

    Returns:
        One line for each notebook of `asked` that failed, and each expectation that it does not meet.
    """
    judged = set(changed or {}) <= {"SEED"}
    expected = expectations().get(f"{profile}-{dataset}", {})
    entries, failures = [], {}
    for name, record in read_records(folder).items():
        record = record or {"status": "damaged", "error": "The record is damaged: run it again."}
        wanted = expected.get(name, {})
        broken = check_record(record, wanted)
        failures[name] = [f"{name}: {line}" for line in (broken if judged else check_record(record, {}))]
        shown = {"notebook": name, "broken": broken, "missed": {line.partition(" ")[0] for line in broken}}
        shown |= {"expected": wanted, "page": _write_html(folder / f"{name}.ipynb")}
        entries.append({"seconds": 0.0, "metrics": {}} | record | shown)
    lines = [line for own in failures.values() for line in own]
    facts = {"profile": profile, "dataset": dataset, "seconds": seconds, "cores": os.cpu_count(), "failures": lines}
    facts |= {"changed": changed or {}, "expected": judged and bool(expected), "entries": entries}
    with replacing(folder / "index.html") as draft:
        draft.write_text(_template().render(facts), encoding="utf-8")
    if update and lines:
        raise UserError(f"{folder.name}: not updated, {len(lines)} expectations fail; see {folder / 'index.html'}")
    if update:
        _keep(folder, f"{profile}-{dataset}")
    return [line for name in failures if asked is None or name in asked for line in failures[name]]


def _template() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("retailkit.runs", ""), autoescape=True)
    environment.filters["number"] = lambda x: f"{x:.3f}".rstrip("0").rstrip(".") if x is not None else ""
    environment.filters["duration"] = lambda s: f"{s:.0f} s" if s < 100 else f"{s / 60:.1f} min"
    return environment.get_template("index.html.j2")


def _write_html(notebook: Path) -> bool:
    """Write an executed notebook as HTML that needs no network; return False where there is no whole notebook."""
    path = notebook.with_suffix(".html")
    if not is_notebook(notebook):
        path.unlink(missing_ok=True)
        return False
    steps = f"]({os.path.relpath(home(), notebook.parent)}/"
    page = notebook_html(notebook, "lab", lambda text: PAGE_LINK.sub(r"](\1.html)", text.replace("](../", steps)))
    page = page.replace("<title>Notebook</title>", f"<title>{html.escape(notebook.stem)}</title>")
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return True


def notebook_html(notebook: Path, template: str, relink: Callable[[str], str] = str) -> str:
    """Return an executed notebook as HTML that needs no network: static states of explorers, formulas as MathML.

    Args:
        notebook: file of a whole notebook.
        template: of nbconvert: `lab` makes a page, `basic` what stands inside one.
        relink: gets the Markdown of each cell, and returns it with the links that the page is to have.
    """
    from nbconvert import HTMLExporter

    content = _readable(notebook)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(mathml, relink(cell.source))
    exporter = HTMLExporter(template_name=template, mathjax_url="", require_js_url="")
    return DIAGRAM_LOADER.sub("", exporter.from_notebook_node(content)[0])


def mathml(formula: re.Match[str]) -> str:
    """Return a formula as MathML, which browsers draw without a script, on one line and with no markdown in it."""
    from latex2mathml.converter import convert

    if not (kind := formula.lastgroup):
        return formula[0]
    drawn = convert(" ".join(formula[kind].split()), display=kind)
    return re.sub(r"[*_~`]", lambda sign: f"&#{ord(sign[0])};", drawn)


def _readable(notebook: Path) -> Any:
    """Return an executed notebook without widget state, progress bars and warnings, its figures as HTML."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs if (shown := _shown(output))]
    return content


def _shown(output: Any) -> Any:
    """Return an output as a page shows it; None for standard error and progress bars."""
    import nbformat

    data, markup = output.get("data", {}), ""
    if output.get("name") == "stderr" or (WIDGET_VIEW in data and "%|" in data.get("text/plain", "")):
        return None
    if WIDGET_VIEW in data:
        markup = STATES_NOTE + data["text/html"] if "text/html" in data else WIDGET_NOTE
    for kind, content in data.items():  # nbconvert's template leaves the alternative text out
        if kind.startswith("image/") and (alt := output.metadata.get(kind, {}).get("alt")):
            markup = f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{content.strip()}">'
    return nbformat.v4.new_output("display_data", {"text/html": markup}) if markup else output


def write_junit(path: Path, run: str, results: Sequence[Result], failures: Sequence[str]) -> None:
    """Write a run as JUnit XML, which CI services read: one test case per notebook, its broken expectations as failure.

    Args:
        path: file to write.
        run: name of the run, such as `fast-synthetic`.
        results: of the notebooks; a kept one takes 0 s.
        failures: lines of `publish`.
    """
    from xml.etree import ElementTree

    suite = ElementTree.Element("testsuite", name=run, tests=str(len(results)), errors="0", skipped="0")
    for result in results:
        about = {"classname": run, "name": result.notebook, "time": f"{result.seconds:.2f}"}
        case = ElementTree.SubElement(suite, "testcase", about)
        if lines := _broken(result, failures):
            ElementTree.SubElement(case, "failure", message=lines[0]).text = "\n".join(lines)
    suite.set("failures", str(len(suite.findall(".//failure"))))
    suite.set("time", f"{sum(result.seconds for result in results):.2f}")
    with replacing(path) as draft:
        ElementTree.ElementTree(suite).write(draft, encoding="utf-8", xml_declaration=True)


def append_summary(path: Path, run: str, results: Sequence[Result], failures: Sequence[str]) -> None:
    """Append a run to a Markdown file as a table with a row per notebook; the arguments are those of `write_junit`."""
    rows = [f"### {run}", "", "| notebook | seconds | result |", "|---|---|---|"]
    for result in results:
        told = "<br>".join(html.escape(line).replace("|", "&#124;") for line in _broken(result, failures))
        rows.append(f"| {result.notebook} | {result.seconds:.0f} | {' '.join(told.split()) or result.status} |")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n\n")


def _broken(result: Result, failures: Sequence[str]) -> list[str]:
    """Return what is wrong with a notebook: why it ended, and the expectations that it does not meet."""
    ended = [result.error or "failed"] if result.status == "failed" else []
    unmet = [line.removeprefix(own) for line in failures if line.startswith(own := f"{result.notebook}: ")]
    return [NO_XML.sub("", line) for line in ended + unmet]


def kept_text(notebook: Path, charts: Collection[bytes] | None = None) -> str:
    """Return an executed notebook as the repository keeps it: `_readable`, without the paths of this machine.

    `charts` are the only images that it keeps, where others show photos of somebody else; None keeps all.
    """
    import nbformat

    content = _readable(notebook)
    if charts is not None:
        kept = {base64.b64encode(chart).decode() for chart in charts}
        for cell in content.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                shown = {found for text in data.values() for found in IMAGE_DATA.findall(str(text))}
                if any(kind.startswith("image/") for kind in data) or not shown <= kept:
                    output["data"] = {"text/html": PHOTO_NOTE}
    content.metadata = {"kernelspec": content.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in content.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = re.sub(r"^ROOT = .*$", 'ROOT = ""', cell.source, flags=re.M)
        if cell.cell_type == "markdown":  # a copy lies one folder deeper than its notebook
            cell.source = cell.source.replace("](../", "](../../")
    text = nbformat.writes(content) + "\n"
    if len(text) > NOTEBOOK_BYTES:
        raise UserError(f"{notebook.name}: {len(text) / 1e6:.1f} MB executed; draw fewer or smaller images")
    return text


def _keep(folder: Path, run: str) -> None:
    """Copy what the repository holds: records, notebooks and figures; no photos of others."""
    target = home() / "papermill_runs" / run
    records, texts = read_records(folder), {}
    for name, record in records.items():
        charts = [(folder / "figures" / f["file"]).read_bytes() for f in record["figures"] if not f["photos"]]
        texts[name] = kept_text(folder / f"{name}.ipynb", None if run.endswith("-synthetic") else charts)
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():  # copies of notebooks that exist no more; those that this run left out stay
        if not (home() / "notebooks" / f"{path.stem}.ipynb").is_file():
            path.unlink()
    for name, record in records.items():
        write_record(target / f"{name}.json", record)
        (target / f"{name}.ipynb").write_text(texts[name], encoding="utf-8")
    _keep_figures(folder / "figures", run, records)


def _keep_figures(source: Path, run: str, records: Mapping[str, dict[str, Any]]) -> None:
    """Replace the kept figures of some notebooks by those of `records`, but for photos of others."""
    target = home() / "figures"
    target.mkdir(exist_ok=True)
    known = target / "index.json"
    index = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    others = {path.stem for path in (home() / "notebooks").glob("*.ipynb")} - set(records)
    for name in [name for name, entry in index.items() if entry["run"] == run and entry["notebook"] not in others]:
        (target / name).unlink(missing_ok=True)
        del index[name]
    short = run.removeprefix("fast-")
    prefix = "" if short == "synthetic" else f"{short}__"
    for notebook, record in records.items():
        for figure in record["figures"]:
            if not figure["photos"]:
                name = prefix + figure["file"]
                shutil.copyfile(source / figure["file"], target / name)
                index[name] = {"notebook": notebook, "run": run, "alt": figure["alt"]}
    write_record(known, dict(sorted(index.items())))
