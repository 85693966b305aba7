"""Turn a finished run into pages: executed notebooks as HTML, one index, and what the repository keeps."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader

from retailkit.config import UserError, replacing
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.record import home, read_record, write_record

NOTEBOOK_BYTES = 1_000_000
# nbconvert's loader of mermaid diagrams, which asks a CDN.
DIAGRAM_LOADER = re.compile(r"<script[^>]*>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", re.S)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def publish(folder: Path, profile: str, dataset: str, update: bool = False) -> list[str]:
    """Write HTML pages and the index of a run.

    Args:
        folder: where the records and executed notebooks lie.
        profile: of the run.
        dataset: of the run.
        update: also refresh the copies that the repository keeps; only a run without failures may.

    Returns:
        One line for each failed notebook and each expectation that is not met.
    """
    expected = expectations().get(f"{profile}-{dataset}", {})
    entries, failures = [], []
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        record = read_record(path) or {"notebook": path.stem, "status": "damaged", "metrics": {}}
        broken = check_record(record, expected.get(path.stem, {}))
        failures += [f"{path.stem}: {line}" for line in broken]
        _to_html(folder / f"{path.stem}.ipynb")
        entries.append(_entry(record, broken, expected.get(path.stem, {})))
    page = _template().render(entries=entries, failures=failures, profile=profile, dataset=dataset)
    with replacing(folder / "index.html") as draft:
        draft.write_text(page, encoding="utf-8")
    if update:
        if failures:
            raise UserError(
                f"{folder.name}: not updated, {len(failures)} expectations fail; see {folder / 'index.html'}"
            )
        _keep(folder, profile, dataset)
    return failures


def _template() -> Any:
    environment = Environment(loader=PackageLoader("retailkit.runs", "templates"), autoescape=True)
    environment.filters["number"] = lambda x: f"{x:.3f}".rstrip("0").rstrip(".") if x is not None else ""
    return environment.get_template("index.html.j2")


def _entry(record: dict[str, Any], broken: list[str], expected: dict[str, Any]) -> dict[str, Any]:
    """Return what the index shows of one notebook."""
    rows = []
    for name, metric in record.get("metrics", {}).items():
        row = {"name": name, "expected": expected.get(name), "broken": any(b.startswith(f"{name} ") for b in broken)}
        rows.append(row | metric | {"fraction": 0 <= metric["value"] <= 1})
    return record | {"rows": rows, "broken": broken, "title": record["notebook"][3:].replace("_", " ")}


def _to_html(notebook: Path) -> None:
    """Write an executed notebook as one HTML file that needs no network: no widgets, no MathJax."""
    if not notebook.is_file():
        return
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [_without_view(o) for o in cell.outputs if o.get("name") != "stderr"]
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="")
    page, _ = exporter.from_notebook_node(content)
    page = DIAGRAM_LOADER.sub("", page)
    page = page.replace("<title>Notebook</title>", f"<title>{html.escape(notebook.stem)}</title>")
    with replacing(notebook.with_suffix(".html")) as draft:
        draft.write_text(page, encoding="utf-8")


def _without_view(output: Any) -> Any:
    """Replace a widget, which lives only with its kernel, by a note."""
    if WIDGET_VIEW in output.get("data", {}):
        note = "<em>An explorer stands here when the notebook is open in Jupyter.</em>"
        output = nbformat.v4.new_output("display_data", {"text/html": note})
    return output


def _keep(folder: Path, profile: str, dataset: str) -> None:
    """Copy what the repository holds: records always; notebooks and figures only of the built-in data set."""
    target, figures = home() / "papermill_runs" / f"{profile}-{dataset}", home() / "figures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    figures.mkdir(exist_ok=True)
    index_path = figures / "index.json"
    index = json.loads(index_path.read_text()) if index_path.is_file() else {}
    run = f"{profile}-{dataset}"
    for name in [n for n, entry in index.items() if entry["run"] == run]:
        (figures / name).unlink(missing_ok=True)
        del index[name]
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        record = read_record(path)
        write_record(target / path.name, record)
        if dataset == "synthetic":
            _keep_notebook(folder / f"{path.stem}.ipynb", target)
        for figure in record["figures"]:
            if not figure["photos"]:
                name = figure["file"] if dataset == "synthetic" else f"{dataset}__{figure['file']}"
                shutil.copyfile(folder / "figures" / figure["file"], figures / name)
                index[name] = {"notebook": path.stem, "run": run, "alt": figure["alt"]}
    with replacing(index_path) as draft:
        draft.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n", encoding="utf-8")


def _keep_notebook(notebook: Path, target: Path) -> None:
    """Copy an executed notebook without machine paths, progress bars and widget state."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata = {"kernelspec": content.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in content.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [_without_view(o) for o in cell.outputs if o.get("name") != "stderr"]
    text = nbformat.writes(content)
    if len(text) > NOTEBOOK_BYTES:
        raise UserError(f"{notebook.name}: {len(text) / 1e6:.1f} MB executed; draw fewer or smaller pictures")
    (target / notebook.name).write_text(text, encoding="utf-8")
