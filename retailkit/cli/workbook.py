"""Commands of the workbook: check the installation and data, run notebooks, fetch, show the tool, measure speed."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retailkit.cache import check_output
from retailkit.cli import options as opts
from retailkit.cli.options import WORKBOOK, app, name_of, write
from retailkit.config import PROFILES, UsageError, UserError, cache_dir, device, home, pick, threads


@app.command(rich_help_panel=WORKBOOK)
def check(
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare photos: near-duplicates, wrong labels, outliers, unreadable text.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Page of --deep, a .csv beside it; default check.html.")] = None,
    force: opts.Force = False,
):
    """Check the installation, or a data set: lists every broken row at once.

    Examples: `retailkit check --dataset folder --root photos`,
    `retailkit check --root photos --deep --output check.html`
    """
    if output and not deep:
        raise UsageError("--output goes with --deep; add --deep, or leave --output out")
    if dataset or root:
        return _check_photos(name_of(dataset, root), root, deep, output or Path("check.html"), force)
    if deep:
        raise UsageError("--deep needs a data set; add --root or --dataset")
    from retailkit import runs

    table, grid = runs.environment(), Table("", "what", "found", "cure")
    for row in table.itertuples():
        grid.add_row("[green]ok[/]" if row.fine else "[red]no[/]", row.what, row.found, row.cure)
    Console().print(grid)
    if not table["fine"].all():
        raise typer.Exit(1)


def _check_photos(dataset: str, root: Path | None, deep: bool, page: Path, force: bool) -> None:
    """Check the rows of a data set; `deep` compares its photos as well, and writes a page and a table beside it."""
    from retailkit.data.check import report

    table = page.with_suffix(".csv")
    if deep:
        if page.suffix.lower() != ".html":
            raise UsageError(f"output={page} has an unknown suffix; use .html (the table beside it ends in .csv)")
        for path in (page, table):
            check_output(path, [root], force)
    checked = report(dataset, root)
    print(checked)
    if checked.faults:
        after = "; --deep looks at the photos after that" if deep else ""
        raise UserError(f"{len(checked.faults)} to be mended, see above{after}")
    print("every row can be read")
    if deep:
        from retailkit.audit import audit

        found = audit(checked.data)
        print("", *found.sentences(), sep="\n")
        write(table, found.rows)
        write(page, found.to_html())
        print(f"written: {page} and {table}")


@app.command("list", rich_help_panel=WORKBOOK)
def list_notebooks():
    """List the notebooks, their parameters and how they last ended."""
    from retailkit import runs

    grid = Table("notebook", "parameters", "last runs")
    for path in runs.notebooks():
        files = sorted(runs.run_dir("fast", "synthetic").parent.glob(f"*/{path.stem}.json"))
        records = [(file.parent.name, runs.read_record(file)) for file in files]
        last = [f"{run}: {r['status']}, {r['seconds']:.0f} s" if r else f"{run}: damaged" for run, r in records]
        knobs = [f"{name} = {p['default']}  [dim]{escape(p['help'])}[/]" for name, p in runs.parameters(path).items()]
        grid.add_row(path.stem, "\n".join(knobs), escape("\n".join(last)) or "never")
    Console().print(grid)


@app.command(rich_help_panel=WORKBOOK)
def run(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Names (20_training, or 20); none means all.")] = None,
    profile: opts.Profile = "fast",
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=256, help="Notebooks at a time; default the cores.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE; repeat it.")] = None,
    fresh: Annotated[bool, typer.Option(help="Run again what is done already.")] = False,
    cell_seconds: Annotated[int | None, typer.Option(min=1, max=10**7, help="For a cell; 1800 in fast.")] = None,
    update: Annotated[bool, typer.Option(help="Refresh the copies that the repository keeps.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML: a test case per notebook.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Append a table in Markdown to this file.")] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="NAME=0..4 or NAME=a,b: a run with each; repeat it.")] = None,
    scheduler: opts.Scheduler = "",
):
    """Execute notebooks and write records, figures and an index.html.

    A run with -p has a folder of its own, which names the changed parameters. So has each run of a --sweep; two tables
    say what they measured.

    Examples: `retailkit run`, `retailkit run 20 -p PRETRAINED=false`, `retailkit run 31 --sweep SEED=0..4`,
    `retailkit run --dataset grocery_store --root path/to/dataset`
    """
    from retailkit import runs
    from retailkit.data import DATASETS
    from retailkit.runs.prepare import prepare

    dataset = pick(DATASETS, name_of(dataset, root), "data set")
    pick(PROFILES, profile, "profile")
    if update and (parameter or sweep):
        raise UsageError("--update keeps results of the notebooks as they are; run it without --parameter and --sweep")
    if sweep and (junit or summary):
        raise UsageError("--junit and --summary describe the runs of one folder; leave them out of a --sweep")
    files = runs.notebooks(notebooks or [])
    extra, settings = runs.parse_parameters(parameter or []), runs.parse_sweep(sweep or [])
    if twice := set(extra) & set(settings[0]):
        raise UsageError(f"{', '.join(sorted(twice))}: in --parameter and in --sweep; give it once")
    started, changed = time.monotonic(), runs.changed(files, extra)
    folder, first = runs.run_dir(profile, dataset, changed), partial(prepare, profile, dataset, root)
    for path in filter(None, (junit, summary)):
        check_output(path, force=True)
    cache_dir(), device(), threads()  # what the environment asks for must be there before anything starts
    if root and dataset != "synthetic" and not root.exists():  # the built-in set is rendered there
        raise UserError(f"{root}: no such folder or CSV; check --root")
    how = {"jobs": jobs, "fresh": fresh, "prepare": first, "timeout": cell_seconds, "scheduler": scheduler}
    if sweep:
        results = runs.execute(files, profile, dataset, root, extra, sweep=settings, **how)
        return _swept(results, runs.run_dir(profile, dataset, changed | runs.parse_parameters(sweep)))
    results = runs.execute(files, profile, dataset, root, extra, output=folder, **how)
    asked, seconds = [result.notebook for result in results], time.monotonic() - started
    failures = runs.publish(folder, profile, dataset, update, seconds, changed, asked)
    if junit:
        runs.write_junit(junit, folder.name, results, failures)
    if summary:
        runs.append_summary(summary, folder.name, results, failures)
    done = sum(result.status != "failed" for result in results)
    print(*failures, sep="\n", end="\n" if failures else "")
    print(f"{done} of {len(results)} notebooks are done in {seconds:.0f} s; see {os.path.relpath(folder)}/index.html")
    if failures or done < len(results):
        raise typer.Exit(1)


def _swept(results: list, folder: Path) -> None:
    """Write the tables of a sweep, and say which runs failed."""
    from retailkit import runs

    tables = runs.write_sweep(results, folder)
    failed = [result for result in results if result.status == "failed"]
    for result in failed:
        print(f"{result.name}: {result.error}")
    where = " and ".join(map(os.path.relpath, tables))
    print(f"{len(results) - len(failed)} of {len(results)} runs are done; see {where}")
    if failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=WORKBOOK)
def fetch(
    name: Annotated[str, typer.Argument(help="A data set, or the word `weights`.")],
    weights: Annotated[str, typer.Argument(help="Weights to fetch: resnet50, resnext101_32x8d.WSL ...")] = "",
    root: Annotated[Path | None, typer.Option(help="Where to put the data set.")] = None,
):
    """Download a data set or weights: shows the licence and checks every file.

    Examples: `retailkit fetch grocery_store`, `retailkit fetch weights resnet50`
    """
    if name == "weights":
        from retailkit import models

        if not weights:
            known = ", ".join(sorted([*models.BACKBONES, *models.TRANSFORMERS, *models.KEYPOINT_NETWORKS]))
            raise UsageError(f"which weights? retailkit fetch weights NAME, one of: {known}")
        print(models.fetch_weights(weights))
    else:
        from retailkit.data.fetch import fetch as fetch_data

        print(fetch_data(name, root))


@app.command("app", rich_help_panel=WORKBOOK)
def show(
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    profile: opts.Profile = "fast",
    checkpoint: Annotated[Path | None, typer.Option(help="Explain this model, which `retailkit train` wrote.")] = None,
    models: Annotated[str, typer.Option(help="Models, with commas between them.")] = "embracenet,image,text",
    ip: Annotated[str, typer.Option(help="Address; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8866,
    token: Annotated[str, typer.Option(envvar="RETAILKIT_TOKEN", help="What visitors have to give.")] = "",
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
):
    """Show the explanation tool as a web page, reachable from this machine only, unless --ip says otherwise.

    Examples: `retailkit app`, `retailkit app --dataset folder --root photos --checkpoint model.safetensors`,
    `retailkit app --ip 0.0.0.0`
    """
    from retailkit.data import DATASETS
    from retailkit.models import MODELS
    from retailkit.runs import app as page

    dataset = pick(DATASETS, name_of(dataset, root), "data set")
    pick(PROFILES, profile, "profile")
    for name in models.split(","):
        pick(MODELS, name, "model")
    where = {"ROOT": root, "CHECKPOINT": checkpoint}
    given = {"PROFILE": profile, "DATASET": dataset, "MODELS": models}
    given |= {name: str(path.resolve()) if path else "" for name, path in where.items()}
    page.serve(given, ip, port, token, browser)


@app.command(rich_help_panel=WORKBOOK)
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks; none means all.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for the rows; growth has one beside it, _growth.csv.")] = None,
    quick: Annotated[bool, typer.Option(help="Under five minutes in all.")] = False,
    force: opts.Force = False,
):
    """Measure side by side in one run: rows of name, case, baseline, seconds, ratio, agreement.

    Example: `retailkit bench render ocr --csv bench.csv --quick`
    """
    import subprocess

    folder = home() / "tests" / "benchmarks"
    known = {path.stem.removeprefix("test_"): path for path in sorted(folder.glob("test_*.py"))}
    chosen = [known[pick(known, name, "benchmark")] for name in names or known]
    environment = os.environ | {"RETAILKIT_BENCH_QUICK": str(int(quick))}
    if csv:
        check_output(csv, force=force)
        environment["RETAILKIT_BENCH_CSV"] = str(csv.resolve())
    command = [sys.executable, "-m", "pytest", "-m", "benchmark", "-n", "0", "-s", *map(str, chosen)]
    raise typer.Exit(subprocess.run(command, cwd=home(), env=environment).returncode)
