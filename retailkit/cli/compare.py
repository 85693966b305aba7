"""The command that compares two recognisers, or two records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailkit.cache import check_output, replacing
from retailkit.cli.options import RECOGNISERS, Dataset, Force, JsonLine, Root, app, name_of, report
from retailkit.config import UsageError


@app.command(rich_help_panel=RECOGNISERS)
def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors), or the record of a notebook (.json).")],
    b: Annotated[Path, typer.Argument(help="Another one of the same kind.")],
    dataset: Dataset = "",
    root: Root = None,
    split: Annotated[str, typer.Option(help="train, val or test; val+test takes both.")] = "test",
    csv: Annotated[Path | None, typer.Option(help="File for the table: one row per photo, or per metric.")] = None,
    html: Annotated[Path | None, typer.Option(help="File for a page with the photos that differ.")] = None,
    force: Force = False,
    json_line: JsonLine = False,
):
    """Compare two checkpoints on the same photos, or two records: the difference, and whether it may be chance.

    For checkpoints: the paired difference of accuracy with its 95 % interval, McNemar's exact test, and the photos on
    which the answers differ. For records: the metrics that both have.

    Examples: `retailkit compare old.safetensors new.safetensors --root photos --html differ.html`,
    `retailkit compare papermill_runs/fast-synthetic/20_training.json my_run/20_training.json`
    """
    from retailkit import comparison
    from retailkit.data.spreadsheet import write_table

    kinds = {path.suffix.lower() for path in (a, b)}
    if len(kinds) > 1 or not kinds <= {".safetensors", ".json"}:
        raise UsageError(f"{a} and {b} cannot be compared; give two checkpoints (.safetensors) or two records (.json)")
    if csv and csv == html:
        raise UsageError(f"--csv and --html both name {csv}; give two names")
    for output in filter(None, (csv, html)):
        check_output(output, [a, b, root], force)
    if kinds == {".json"}:
        rows, said = comparison.compare_records(a, b)
        print(*said, sep="\n")
        print(rows.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
        facts, draw = {"metrics": rows.to_dict("records")}, lambda: comparison.records_page(rows, said)
    else:
        found = comparison.compare(a, b, name_of(dataset, root), root, split)
        print(*found.sentences(), sep="\n")
        rows, facts, draw = found.photos, found.summary(), found.to_html
        shown = found.differing().head(10)[["image", "label", "a", "b", "outcome"]]
        if len(shown):
            print(shown.to_string(index=False))
    for output, write in ((csv, lambda draft: write_table(rows, draft)), (html, lambda draft: _text(draft, draw()))):
        if output:
            with replacing(output) as draft:
                write(draft)
            print(f"written: {output}")
    if json_line:
        report(facts, json_line)


def _text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8", errors="replace")
