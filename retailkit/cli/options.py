"""The command line's application, the options that several commands share, and how a command says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from retailkit import __version__
from retailkit.cache import replacing, to_json
from retailkit.config import SEEDS

WORKBOOK, RECOGNISERS = "The workbook", "Recognisers of your own products"  # headings of the help
app = typer.Typer(
    help="Fine-grained retail product recognition: run the workbook, train, evaluate. "
    "Add --debug to any command to see where an error comes from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Dataset = Annotated[str, typer.Option(help="Its name, such as grozi120; default folder with --root, else synthetic.")]
Root = Annotated[Path | None, typer.Option(help="Its folder (or CSV); default $RETAILKIT_DATA/NAME, then the cache.")]
Split = Annotated[str, typer.Option(help="train, val or test; val+test takes both.")]
Profile = Annotated[str, typer.Option(help="fast (two CPU cores) or full.")]
Checkpoint = Annotated[Path, typer.Option(help="What `retailkit train` wrote.")]
Scheduler = Annotated[str, typer.Option(help="Address of a dask scheduler: run on its workers (docs/scale.md).")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The same seed gives the same result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that retailkit did not write.")]
JsonLine = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def _show_version(asked: bool) -> None:
    if asked:
        print(f"retailkit {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
]


@app.callback()
def _whole(version: Version = False) -> None:
    pass


def name_of(dataset: str, root: Path | None) -> str:
    """Return the name of the data set: a root alone is always a folder (or CSV) of one's own."""
    return dataset or ("folder" if root else "synthetic")


def write(path: Path, content: Any) -> None:
    """Write a table (a DataFrame, as CSV) or a page (a string) to a file: all of it or nothing."""
    from retailkit.data.spreadsheet import write_table

    with replacing(path) as draft:
        if isinstance(content, str):
            draft.write_text(content, encoding="utf-8", errors="replace")
        else:
            write_table(content, draft)


def report(facts: dict, json_line: bool) -> None:
    """Print facts, one line each, or as one line of JSON."""
    if json_line:
        print(to_json(facts))
        return
    for name, value in facts.items():
        if value not in ("", []):
            print(f"{name}: {_plain(value)}")


def _plain(value) -> str:
    """Return a fact with three decimals, and commas between the parts of a whole."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
