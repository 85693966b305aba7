"""The command that trains and tests on background variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retailkit.cache import check_output, replacing
from retailkit.cli.options import RECOGNISERS, Dataset, Force, Root, Scheduler, app, name_of
from retailkit.config import cache_dir, pick

FEW = 30  # test images: with fewer, one more mistake changes accuracy by more than 0.03


@app.command(rich_help_panel=RECOGNISERS)
def matrix(
    dataset: Dataset = "",
    root: Root = None,
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
    scheduler: Scheduler = "",
    force: Force = False,
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
        with replacing(csv) as draft:
            cells.to_csv(draft, index=False, errors="surrogateescape")
    answers = study.predictions(cells)
    table = study.accuracy(answers)
    grid = table.pivot(index="train", columns="test", values="accuracy").reindex(index=rows, columns=columns)
    print(grid.rename_axis("trained on", columns=None).to_string(float_format="{:.3f}".format))
    print(f"{len(scenes[0])} images to train on, {len(scenes[1])} to test on, {len(products.classes)} classes")
    if left := sum(part.left_out for part in scenes):
        print(f"left out: {left}, whose masks are missing, empty, or leave no background")
    if len(scenes[1]) < FEW:
        print(f"{len(scenes[1])} test images are too few to say anything: test on at least {FEW}")
    if {"mixed_same", "mixed_rand"} <= set(columns):
        for gap in study.bg_gap(answers).itertuples():
            print(f"BG-gap of {gap.train}: {gap.gap:.3f} ({gap.low:.3f} to {gap.high:.3f})")
