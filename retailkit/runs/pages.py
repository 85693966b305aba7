"""Turn a finished run into pages: executed notebooks as HTML, one index, and what the repository keeps."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retailkit.cache import replacing
from retailkit.config import UserError
from retailkit.runs.expect import check_record, expectations
from retailkit.runs.record import home, read_record, write_record

NOTEBOOK_BYTES = 1_000_000
# nbconvert's loader of mermaid diagrams, which asks a CDN.
DIAGRAM_LOADER = re.compile(r"<script[^>]*>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", re.S)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def publish(folder: Path, profile: str, dataset: str, update: bool = False, seconds: float | None = None) -> list[str]:
    """Write HTML pages and the index of a run.

    Args:
        folder: where the records and executed notebooks lie.
        profile: of the run.
        dataset: of the run.
        update: also refresh the copies that the repository keeps; only a run without failures may.
        seconds: wall time of the whole run, for the page.

    Returns:
        One line for each failed notebook and each expectation that is not met.
    """
    expected = expectations().get(f"{profile}-{dataset}", {})
    entries, failures = [], []
    for path in sorted(folder.glob("[0-9][0-9]_*.json")):
        record = read_record(path) or {"notebook": path.stem, "status": "damaged", "seconds": 0.0}
        broken = check_record(record, expected.get(path.stem, {}))
        failures += [f"{path.stem}: {line}" for line in broken]
        _to_html(folder / f"{path.stem}.ipynb")
        page = {"page": path.with_suffix(".html").is_file()}
        entries.append(_entry(record, broken, expected.get(path.stem, {})) | page)
    facts = {"profile": profile, "dataset": dataset, "seconds": seconds, "cores": os.cpu_count()}
    facts["expected"] = bool(expected)
    page = _template().render(entries=entries, failures=failures, **facts)
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
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("retailkit.runs", "templates"), autoescape=True)
    environment.filters["number"] = lambda x: f"{x:.3f}".rstrip("0").rstrip(".") if x is not None else ""
    environment.filters["duration"] = lambda s: f"{s:.0f} s" if s < 100 else f"{s / 60:.1f} min"
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
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            shown = (o for o in cell.outputs if o.get("name") != "stderr" and not _is_bar(o))
            cell.outputs = [_with_alt(_without_view(o)) for o in shown]
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="")
    page, _ = exporter.from_notebook_node(content)
    page = DIAGRAM_LOADER.sub("", page)
    page = page.replace("<title>Notebook</title>", f"<title>{html.escape(notebook.stem)}</title>")
    with replacing(notebook.with_suffix(".html")) as draft:
        draft.write_text(page, encoding="utf-8")


def _is_bar(output: Any) -> bool:
    """Say whether an output is a progress bar of tqdm's, which means nothing once the work is done."""
    data = output.get("data", {})
    return WIDGET_VIEW in data and "%|" in data.get("text/plain", "")


def _without_view(output: Any) -> Any:
    """Replace a widget, which lives only with its kernel, by a note."""
    import nbformat

    if WIDGET_VIEW in output.get("data", {}):
        note = "<em>An explorer stands here when the notebook is open in Jupyter.</em>"
        output = nbformat.v4.new_output("display_data", {"text/html": note})
    return output


def _with_alt(output: Any) -> Any:
    """Write a figure as HTML with its alternative text, which nbconvert's template leaves out."""
    import nbformat

    for kind, content in output.get("data", {}).items():
        if kind.startswith("image/") and (alt := output.metadata.get(kind, {}).get("alt")):
            tag = f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{content}">'
            return nbformat.v4.new_output("display_data", {"text/html": tag})
    return output


def _keep(folder: Path, profile: str, dataset: str) -> None:
    """Copy what the repository holds: records always; notebooks and figures only of the built-in data set.

    Notebooks that this run left out keep their copies; those that exist no more lose them.
    """
    run = f"{profile}-{dataset}"
    target, figures = home() / "papermill_runs" / run, home() / "figures"
    records = {path.stem: read_record(path) for path in sorted(folder.glob("[0-9][0-9]_*.json"))}
    texts = {name: _kept_text(folder / f"{name}.ipynb") for name in records} if dataset == "synthetic" else {}
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if not (home() / "notebooks" / f"{path.stem}.ipynb").is_file():
            path.unlink()
    for name, record in records.items():
        write_record(target / f"{name}.json", record)
    for name, text in texts.items():
        (target / f"{name}.ipynb").write_text(text, encoding="utf-8")
    _keep_figures(folder / "figures", figures, run, records)


def _keep_figures(source: Path, target: Path, run: str, records: dict[str, dict[str, Any]]) -> None:
    """Replace the kept figures of some notebooks by those of `records`, but for photos of others."""
    target.mkdir(exist_ok=True)
    index_path = target / "index.json"
    index = json.loads(index_path.read_text(encoding="utf-8")) if index_path.is_file() else {}
    for name in _outdated(index, run, records):
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
    with replacing(index_path) as draft:
        draft.write_text(json.dumps(dict(sorted(index.items())), indent=1) + "\n", encoding="utf-8")


def _outdated(index: dict[str, dict[str, str]], run: str, replaced: Iterable[str]) -> list[str]:
    there = {path.stem for path in (home() / "notebooks").glob("*.ipynb")} - set(replaced)
    return [name for name, entry in index.items() if entry["run"] == run and entry["notebook"] not in there]


def _kept_text(notebook: Path) -> str:
    """Return an executed notebook without machine paths, progress bars and widget state."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.metadata = {"kernelspec": content.metadata["kernelspec"], "language_info": {"name": "python"}}
    for cell in content.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            shown = (o for o in cell.outputs if o.get("name") != "stderr" and not _is_bar(o))
            cell.outputs = [_with_alt(_without_view(o)) for o in shown]
    text = nbformat.writes(content) + "\n"
    if len(text) > NOTEBOOK_BYTES:
        raise UserError(f"{notebook.name}: {len(text) / 1e6:.1f} MB executed; draw fewer or smaller pictures")
    return text
