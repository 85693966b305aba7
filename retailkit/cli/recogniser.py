"""Commands for one recogniser: train it, measure it, explain it, export it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from retailkit.cache import check_output, file_identity
from retailkit.cli import options as opts
from retailkit.cli.options import RECOGNISERS, app, name_of, report, write
from retailkit.config import ALONE, DataError, UsageError, UserError, pick, rank

DECIDED = ("dataset", "model", "backbone", "weights", "frozen", "epochs", "optimizer", "neighbours", "false_accepts",
           "jobs", "scheduler")  # by a preset  # fmt: skip


@app.command(rich_help_panel=RECOGNISERS)
def train(
    context: typer.Context,
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("model.safetensors"),
    model: Annotated[str, typer.Option(help="image, lca, gallery, text, score_fusion, concat, embracenet.")] = "image",
    backbone: Annotated[str, typer.Option(help="auto (lite0 if frozen, else lite2), or timm:NAME.")] = "auto",
    weights: Annotated[str, typer.Option(help="Of the backbone: auto, a variant, a file, or none.")] = "auto",
    frozen: Annotated[bool, typer.Option(help="Train a linear classifier on frozen features: minutes.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, max=10**6, help="Passes over the training split.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or sgd with momentum as in the papers.")] = "adamw",
    preset: Annotated[str, typer.Option(help="grocery_best or grozi_best: the best for that data set.")] = "",
    hold_out: Annotated[bool, typer.Option("--hold-out", help="With --preset: learn from `train` alone.")] = False,
    neighbours: Annotated[int | None, typer.Option(min=0, help="Of a gallery: photos that vote, or 0.")] = None,
    false_accepts: Annotated[float | None, typer.Option(help="Of a gallery: unknown products it may accept.")] = None,
    seed: opts.Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes that read words, and encode if frozen.")] = 1,
    scheduler: opts.Scheduler = "",
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Train a recogniser with packaged weights; by default the whole network, about 40 minutes on two cores.

    The same command goes on after an interrupt. An output that the same training made is used again, but for presets,
    whose members are kept in the cache instead.

    Examples: `retailkit train --dataset grocery_store --root path/to/dataset`,
    `retailkit train --dataset folder --root photos --frozen --model concat`,
    `retailkit train --root photos --frozen --backbone timm:vit_small_patch14_reg4_dinov2`,
    `retailkit train --root photos --model gallery` (then `retailkit add`),
    `retailkit train --preset grocery_best --root path/to/dataset`
    """
    from retailkit import recipes, training

    _check_checkpoint(output, root, force)
    frozen, before = frozen or model == "gallery", file_identity(output)
    if rank() is not None and (frozen or preset or jobs > 1 or scheduler):
        raise UsageError(ALONE)
    if preset:
        _check_preset(context)
        return _trained(recipes.train(preset, output, root, seed, hold_out), before, json_line)
    if hold_out:
        raise UsageError("--hold-out goes with --preset only; other trainings never learn from val")
    if output.exists():
        print(f"{output} is there: it is used again if the same training made it, and replaced otherwise")
    products = _photos(dataset := name_of(dataset, root), root, model, frozen, jobs, scheduler)
    chosen = {"backbone": backbone, "weights": weights, "neighbours": neighbours, "false_accepts": false_accepts}
    name, profile = ("probe", "fast") if frozen else ("finetune", "full")
    changes = {} if epochs is None else {"epochs": epochs}
    changes |= {"optimizer": optimizer} | training.RATES[pick(training.RATES, optimizer, "optimizer")]
    spec = training.reference(name, dataset, root, profile, seed, model, options=_options(model, chosen), **changes)
    print(products)
    if frozen:
        training.encode_splits(spec, products, jobs, scheduler)
    trained, history = training.fit_or_load(spec, products, output)
    facts = {"checkpoint": str(output), "seconds": round(history.seconds, 1), "best_epoch": history.best_epoch}
    if "val" in products.splits and not rank():
        facts["val"] = training.evaluate(trained, products.split("val", trained.input_size)).summary()
    _trained(facts, before, json_line)


def _check_preset(context: typer.Context) -> None:
    for name in DECIDED:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise UsageError(f"--{option} does not go with --preset, which decides it; leave one of them out")


def _photos(dataset: str, root: Path | None, model: str, frozen: bool, jobs: int, scheduler: str):
    """Load the photos to learn from, with their words where the model uses text."""
    from retailkit import data, models, training
    from retailkit.data import ocr

    reads = "text" in models.MODELS[pick(models.MODELS, model, "model")].modalities
    if (jobs > 1 or scheduler) and not (reads or frozen):
        raise UsageError("--jobs and --scheduler read words, and encode for --frozen; leave them out here")
    with training.main_first():
        products = data.load(dataset, root)
        if reads:
            training.read_words(products, jobs, scheduler)
            products = ocr.add_text(products)
    return products


def _options(model: str, chosen: dict) -> dict:
    """Return the options that were chosen: `auto` and None leave one to the model, and `none` means None."""
    options = {name: value for name, value in chosen.items() if value not in (None, "auto")}
    if options.get("weights") == "none":
        options["weights"] = None
    if model == "text":
        options["missing"] = "prior"  # the answer to an image without words; the others have the image
    return options


def _check_checkpoint(output: Path, root: Path | None, force: bool) -> None:
    """See `check_output`; also a gallery that `retailkit add` has put photos into is not replaced without `force`."""
    from retailkit.training.checkpoints import read_checkpoint

    check_output(output, [root], force)
    try:
        added = 0 if force else read_checkpoint(output)[0]["facts"].get("added")
    except UserError:  # no checkpoint that can be read: nothing is lost
        return
    if added:
        cure = "choose another --output, or replace it with --force"
        raise UsageError(f"{output}: {added} photos were added to this gallery and would be lost; {cure}")


def _trained(facts: dict, before: str, json_line: bool) -> None:
    """Report a training, and whether its checkpoint, whose identity was `before`, has been replaced."""
    if rank():  # of several processes, the first one has written it
        return
    done = "written" if before == facts["checkpoint"] else "replaced"
    report(facts | {"output": "used again" if file_identity(facts["checkpoint"]) == before else done}, json_line)


@app.command(rich_help_panel=RECOGNISERS)
def evaluate(
    checkpoint: opts.Checkpoint,
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    split: opts.Split = "test",
    predictions: Annotated[Path | None, typer.Option(help="CSV to write: one row an image.")] = None,
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Evaluate a checkpoint on a split: top-1, macro F1, n, the 95 % interval, and the classes most often confused.

    Example: `retailkit evaluate --dataset grocery_store --root DIR --split test --checkpoint model.safetensors --json`
    """
    from retailkit import recipes, training

    dataset = name_of(dataset, root)
    if predictions:
        check_output(predictions, [root, checkpoint], force)
    model, _, facts = training.load_checkpoint(checkpoint)
    products = training.with_classes(recipes.load_for([(model, facts)], dataset, root, split), model, split)
    part = products.split(split, facts["size"], facts["fit"])
    result = training.evaluate(model, part)
    if predictions:
        write(predictions, result.to_frame().assign(image=part.table["image"].to_numpy()))
    print(*result.sentences(split), sep="\n")
    if known := training.learned_from(facts, part):
        print(f"{len(known)} of these photos trained this model, such as {known[0]}: they say nothing about new ones.")
    report(result.summary() | {"split": split, "dataset": dataset}, json_line)


@app.command(rich_help_panel=RECOGNISERS)
def predict(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders with photos in them.")],
    checkpoint: opts.Checkpoint,
    output: Annotated[Path | None, typer.Option(help="A .csv or .json file; default CSV on the screen.")] = None,
    unknown: Annotated[float | None, typer.Option(help="Mark answers less probable (a gallery: similar).")] = None,
    force: opts.Force = False,
):
    """Say which products photos show: label, probability, runner-up, and whether the product may be unknown.

    Photos that cannot be read are listed at the end; the others are answered all the same, and the exit code is 1. An
    answer is marked as unknown where its probability is below --unknown. A gallery model judges the similarity instead,
    and has a threshold of its own.

    Examples: `retailkit predict new_photos --checkpoint model.safetensors --output answers.csv`,
    `retailkit predict shelf.jpg box.png --checkpoint model.safetensors --unknown 0.5`
    """
    from retailkit import answers, training
    from retailkit.data import folder
    from retailkit.data.advice import some
    from retailkit.data.spreadsheet import write_table

    if output and output.suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"output={output} has an unknown suffix; use .csv or .json")
    if unknown is not None and not 0 <= unknown <= 1:
        raise UsageError(f"--unknown {unknown:g} is no probability and no similarity; use a number from 0 to 1")
    if output:
        check_output(output, [checkpoint, *photos], force)
    model, _, facts = training.load_checkpoint(checkpoint)
    files, others = folder.gather(photos, unlisted := [])
    found = answers.predict(model, facts, files, unknown)
    if output:
        answers.save(found, output, checkpoint=str(checkpoint), unlisted=unlisted)
    elif len(found.table):
        write_table(found.table, sys.stdout)
    unsure = int(found.table["unknown"].sum()) if len(found.table) else 0
    said = [f"{len(found.table)} of {len(files)} photos answered, {unsure} unknown"]
    said += [f"left out, as no photos: {len(others)} files ({some(list(map(str, others)))})"] if others else []
    print(*said, sep="\n", file=sys.stdout if output else sys.stderr)
    if failed := [*unlisted, *found.failed.values()]:
        raise DataError.listing(failed)


@app.command(rich_help_panel=RECOGNISERS)
def add(
    name: Annotated[str, typer.Argument(help="Of the product.")],
    photos: Annotated[list[Path], typer.Argument(help="Its photos, or a folder with them; one to five are enough.")],
    checkpoint: opts.Checkpoint,
    output: Annotated[Path | None, typer.Option(help="Checkpoint to write; default the same file.")] = None,
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Add a product to a gallery model in seconds, from a few photos and without training.

    The model is one that `retailkit train --model gallery` wrote. A name that it knows already gets more photos.

    Example: `retailkit add "oat milk 1 l" new_photos --checkpoint shop.safetensors`
    """
    from retailkit import training
    from retailkit.data import folder

    check_output(output or checkpoint, photos if output is None else [checkpoint, *photos], force)
    model, history, facts = training.load_checkpoint(checkpoint)
    training.require_gallery(model, f"{checkpoint}: cannot add a product")
    done, facts = training.add_product(model, facts, name, folder.gather(photos)[0])
    training.save_checkpoint(model, output or checkpoint, history, **facts)
    report(done | {"checkpoint": str(output or checkpoint)}, json_line)


@app.command(rich_help_panel=RECOGNISERS)
def explain(
    checkpoint: opts.Checkpoint,
    photo: Annotated[Path | None, typer.Argument(help="Image file; none explains a split of a data set.")] = None,
    output: Annotated[Path | None, typer.Option(help="An .html or .safetensors file; a folder for a split.")] = None,
    classes: Annotated[str, typer.Option(help="top1, top3, ..., or the name of a class.")] = "top3",
    contrast: Annotated[str, typer.Option(help="runner_up, or the name of the class to compare with.")] = "runner_up",
    unit: Annotated[str, typer.Option(help="What of the text is hidden as a whole: word or line.")] = "word",
    link_ocr: Annotated[bool, typer.Option("--link-ocr", help="Hide a word on the image together with it.")] = False,
    budget: Annotated[int, typer.Option(min=1, max=10**5, help="Masked images; more are more stable.")] = 512,
    seed: opts.Seed = 0,
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    split: opts.Split = "test",
    jobs: Annotated[int | None, typer.Option(min=1, max=256, help="Photos at a time; default the cores.")] = None,
    scheduler: opts.Scheduler = "",
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Explain what a model says of a photo: which parts of the image and which words, and how far to trust it.

    Instead of one photo, a whole split can be explained: one file per photo, and a table of all. The same command goes
    on after an interrupt.

    Examples: `retailkit explain shelf.jpg --checkpoint model.safetensors --output why.html`,
    `retailkit explain --root photos --split test --checkpoint model.safetensors --output explanations`
    """
    from retailkit.explain import lime

    chosen = {"classes": classes, "contrast": contrast, "token": unit, "link_ocr": link_ocr, "seed": seed}
    options = lime.Options(**chosen, budget=budget)
    if photo:
        if dataset or root or scheduler:
            raise UsageError(f"{photo}: give a photo, or a data set with --dataset or --root, and not both")
        return report(_explain_photo(photo, checkpoint, output or Path("explanation.html"), options, force), json_line)
    if not (dataset or root):
        raise UsageError("what is to be explained? give a photo, or a data set with --dataset or --root")
    from retailkit.explain import split as photos

    table, output = photos.TABLE, output or Path("explanations")
    check_output(output / table, [root, checkpoint], force)
    asked = name_of(dataset, root), root, split
    found, kept, failed = photos.explain_split(checkpoint, *asked, output, options, jobs, scheduler)
    told = {"output": str(output), "table": str(output / table), "explained": found}
    report(told | {"kept": kept, "failed": len(failed)}, json_line)
    if failed:
        raise DataError.listing(failed)


def _explain_photo(photo: Path, checkpoint: Path, output: Path, options, force: bool) -> dict:
    from retailkit import training
    from retailkit.data import folder, ocr
    from retailkit.explain import lime
    from retailkit.explain.split import gist
    from retailkit.widgets.page import explanation_page

    if output.suffix not in (".html", ".safetensors"):
        raise UsageError(f"output={output} has an unknown suffix; use .html or .safetensors")
    check_output(output, [photo, checkpoint], force)
    model, _, facts = training.load_checkpoint(checkpoint)
    photos = folder.photos([photo], model.classes)
    if "text" in model.modalities:
        photos = ocr.add_text(photos)
    sample = photos.split("test", facts["size"], facts["fit"])[0]
    found = lime.explain(model, sample.image, sample.words, options)
    if output.suffix == ".html":
        write(output, explanation_page(found, sample.image))
    else:
        found.save(output)
    return gist(found) | {"output": str(output)}


@app.command(rich_help_panel=RECOGNISERS)
def export(
    checkpoint: opts.Checkpoint,
    dataset: opts.Dataset = "",
    root: opts.Root = None,
    split: Annotated[str, typer.Option(help="Photos to measure on: train, val or test.")] = "test",
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("export"),
    force: opts.Force = False,
    json_line: opts.JsonLine = False,
):
    """Export an `image` or `lca` model: ONNX, preprocessing, class names, a program that uses them, and a model card.

    The ONNX model has to agree with PyTorch on the split, or nothing is written. The card says what this model reaches
    on the split: accuracy by class and condition, confusions, calibration, speed and size.

    Example: `retailkit export --checkpoint model.safetensors --dataset folder --root photos --output shop`
    """
    from retailkit.export import export as write

    made = write(checkpoint, output, name_of(dataset, root), root, split, force)
    gist = {name: made["evaluation"][name] for name in ("top1", "interval", "n", "calibration_error")}
    gist |= {name: made[name] for name in ("difference_from_pytorch", "megabytes", "milliseconds")}
    report({"output": str(output)} | gist, json_line)
