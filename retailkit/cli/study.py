"""Commands that compare: two recognisers or two records, and training and testing on background variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailkit.cache import check_output
from retailkit.cli import options as opts
from retailkit.cli.options import RECOGNISERS, app, name_of, report, write
from retailkit.config import UsageError, cache_dir, pick

FEW = 30  # test images: with fewer, one more mistake changes accuracy by more than 0.03


@app.command(rich_help_panel=RECOGNISERS)
def compare(
    a: Annotated[Path, typer.Argument(help="A checkpoint (.safetensors), or the record of a notebook (.json).")],
    b: Annotated[Path, typer.Argument(help="Another one of the same kind.")],
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    split: opts.Split = "test",
    csv: Annotated[Path | None, typer.Option(help="File for the table: one row per photo, or per metric.")] = None,
    html: Annotated[Path | None, typer.Option(help="File for a page with the photos that differ.")] = None,
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Compare two checkpoints on the same photos, or two records: the difference, and whether it may be chance.

    For checkpoints: the paired difference of accuracy with its 95 % interval, McNemar's exact test, and the photos on
    which the answers differ. For records: the metrics that both have.

    Examples: `retailkit compare old.safetensors new.safetensors --root photos --html differ.html`,
    `retailkit compare papermill_runs/fast-synthetic/20_training.json my_run/20_training.json`
    """
    from retailkit import comparison

    kinds = {path.suffix.lower() for path in (a, b)}
    if kinds not in ({".safetensors"}, {".json"}):
        raise UsageError(f"{a} and {b} cannot be compared; give two checkpoints (.safetensors) or two records (.json)")
    if csv and csv == html:
        raise UsageError(f"--csv and --html both name {csv}; give two names")
    for output in filter(None, (csv, html)):
        check_output(output, [a, b, root], force)
    if kinds == {".json"}:
        rows, said = comparison.compare_records(a, b)
        shown, facts, page = rows, {"metrics": rows.to_dict("records")}, lambda: comparison.records_page(rows, said)
    else:
        found = comparison.compare(a, b, name_of(dataset, root), root, split)
        shown = found.differing().head(10)[["image", "label", "a", "b", "outcome"]]
        rows, said, facts, page = found.photos, found.sentences(), found.summary(), found.to_html
    print(*said, sep="\n")
    if len(shown):
        print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep=""))
    for output, content in ((csv, lambda: rows), (html, page)):
        if output:
            write(output, content())
            print(f"written: {output}")
    if json_line:
        report(facts, json_line)


@app.command(rich_help_panel=RECOGNISERS)
def matrix(
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    train: Annotated[list[str] | None, typer.Option(help="Variant; repeat it; default the paper's eight.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Variant; repeat it; default the paper's eight.")] = None,
    labels: Annotated[str, typer.Option(help="What is recognised: label, family or coarse.")] = "label",
    backbone: Annotated[str, typer.Option(help="auto: lite0 to probe, lite2 to finetune.")] = "auto",
    size: Annotated[int | None, typer.Option(min=8, max=2048, help="Of the images; default the backbone's.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of each row.")] = 1,
    mode: Annotated[str, typer.Option(help="probe (linear heads on frozen features) or finetune.")] = "probe",
    folder: Annotated[Path | None, typer.Option(help="For finished cells and models; default the cache.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for the cells: one row a cell and seed.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Rows at a time, in as many processes.")] = 1,
    scheduler: opts.Scheduler = "",
    force: opts.Force = False,
):
    """Train on each background variant and test on each; the same command goes on after an interrupt.

    Masks come from the data set, and from GrabCut where it has none.

    Example: `retailkit matrix --train original --train mixed_rand --test mixed_same --test mixed_rand --csv cells.csv`
    """
    from retailkit import backgrounds, data, models, training
    from retailkit.backgrounds import matrix as study

    profile = {"probe": "fast", "finetune": "full"}[pick(("probe", "finetune"), mode, "mode")]
    rows, columns = train or list(backgrounds.PAPER), test or list(backgrounds.PAPER)
    for name in (*rows, *columns):
        pick(backgrounds.VARIANTS, name, "variant")
    for output in filter(None, (csv, folder and folder / "cells")):
        check_output(output, [root], force)
    dataset, options = name_of(dataset, root), {} if backbone == "auto" else {"backbone": backbone}
    spec = training.reference(mode, dataset, root, profile, options=options)
    side = size or models.build("image", ["any"], **spec.model_options).input_size
    found = study.labelled_by(training.repetition(data.load(dataset, root), 0), labels)
    products, bare = backgrounds.masked(found), (found.table["mask"] == "").sum()
    if bare:
        print(f"GrabCut: {bare - (products.table['mask'] == '').sum()} of {bare} masks accepted")
    scenes = study.read_splits(products, side)
    asked = spec, rows, columns, range(seeds), folder or cache_dir("matrix")
    if jobs > 1 or scheduler:
        study.run_rows(products, scenes, *asked, jobs, scheduler)
    cells = study.run(*scenes, *asked)
    if csv:
        write(csv, cells)
    answers = study.predictions(cells)
    grid = study.accuracy(answers).pivot(index="train", columns="test", values="accuracy")
    grid = grid.reindex(index=rows, columns=columns)
    print(grid.rename_axis("trained on", columns=None).to_string(float_format="{:.3f}".format))
    print(f"{len(scenes[0])} images to train on, {len(scenes[1])} to test on, {len(products.classes)} classes")
    if left := sum(part.left_out for part in scenes):
        print(f"left out: {left}, whose masks are missing, empty, or leave no background")
    if len(scenes[1]) < FEW:
        print(f"{len(scenes[1])} test images are too few to say anything: test on at least {FEW}")
    if {"mixed_same", "mixed_rand"} <= set(columns):
        for gap in study.bg_gap(answers).itertuples():
            print(f"BG-gap of {gap.train}: {gap.gap:.3f} ({gap.low:.3f} to {gap.high:.3f})")
