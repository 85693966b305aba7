"""The `retailkit` command. Each command says what it did in plain lines, and fails in one.

Exit codes: 0 done, 1 work failed or an expectation is not met, 2 the call has to change, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retailkit.cache import check_output, file_identity, replacing, to_json
from retailkit.config import PROFILES, SEEDS, UsageError, UserError, cache_dir, device, explained, pick, threads

FEW = 30  # test images: with fewer, one more mistake changes accuracy by more than 0.03
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a busy machine

app = typer.Typer(
    help="Fine-grained retail product recognition: run the workbook, train, evaluate. "
    "Add --debug to any command to see where an error comes from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

Dataset = Annotated[str, typer.Option(help="Its name, such as grozi120; default folder with --root, else synthetic.")]
Root = Annotated[Path | None, typer.Option(help="Its folder (or CSV); default $RETAILKIT_DATA/NAME, then the cache.")]
Profile = Annotated[str, typer.Option(help="fast (two CPU cores) or full.")]
Checkpoint = Annotated[Path, typer.Option(help="What `retailkit train` wrote.")]
Seed = Annotated[int, typer.Option(min=0, max=SEEDS - 1, help="The same seed gives the same result.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that retailkit did not write.")]
JsonLine = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def _name(dataset: str, root: Path | None) -> str:
    """Return the name of the data set: a root alone is always a folder (or CSV) of one's own."""
    return dataset or ("folder" if root else "synthetic")


@app.command()
def check(dataset: Dataset = "", root: Root = None):
    """Check the installation, or a data set: lists every broken row at once.

    Example: `retailkit check --dataset folder --root photos`
    """
    if dataset or root:
        from retailkit.data.check import report

        found = report(_name(dataset, root), root)
        print(found)
        if found.faults:
            raise UserError(f"{len(found.faults)} to be mended, see above")
        return print("every row can be read")
    from retailkit import runs

    table, grid = runs.environment(), Table("", "what", "found", "cure")
    for row in table.itertuples():
        grid.add_row("[green]ok[/]" if row.fine else "[red]no[/]", row.what, row.found, row.cure)
    Console().print(grid)
    if not table["fine"].all():
        raise typer.Exit(1)


@app.command(name="list")
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


@app.command()
def run(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Names (20_training, or 20); none means all.")] = None,
    profile: Profile = "fast",
    dataset: Dataset = "",
    root: Root = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=256, help="Notebooks at a time; default the cores.")] = None,
    parameter: Annotated[list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE; repeat it.")] = None,
    fresh: Annotated[bool, typer.Option(help="Run again what is done already.")] = False,
    cell_seconds: Annotated[int | None, typer.Option(min=1, max=10**7, help="For a cell; 1800 in fast.")] = None,
    update: Annotated[bool, typer.Option(help="Refresh the copies that the repository keeps.")] = False,
):
    """Execute notebooks and write records, figures and an index.html.

    A run with -p has a folder of its own, which names the changed parameters.

    Examples: `retailkit run`, `retailkit run 20 -p PRETRAINED=false`,
    `retailkit run --dataset grocery_store --root path/to/dataset`
    """
    from retailkit import runs
    from retailkit.data import DATASETS
    from retailkit.runs.prepare import prepare

    dataset = pick(DATASETS, _name(dataset, root), "data set")
    pick(PROFILES, profile, "profile")
    if update and parameter:
        raise UsageError("--update keeps results of the notebooks as they are; run it without --parameter")
    files = runs.notebooks(notebooks or [])
    extra = runs.parse_parameters(parameter or [])
    changed = runs.changed(files, extra)
    started, folder = time.monotonic(), runs.run_dir(profile, dataset, changed)
    cache_dir(), device(), threads()  # what the environment asks for must be there before anything starts
    if root and dataset != "synthetic" and not root.exists():  # the built-in set is rendered there
        raise UserError(f"{root}: no such folder or CSV; check --root")
    results = runs.execute(files, profile, dataset, root, extra, jobs, fresh, prepare, folder, cell_seconds)
    asked, seconds = [result.notebook for result in results], time.monotonic() - started
    failures = runs.publish(folder, profile, dataset, update, seconds, changed, asked)
    done = sum(result.status != "failed" for result in results)
    print(*failures, sep="\n", end="\n" if failures else "")
    print(f"{done} of {len(results)} notebooks are done in {seconds:.0f} s; see {os.path.relpath(folder)}/index.html")
    if failures or done < len(results):
        raise typer.Exit(1)


@app.command()
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


@app.command()
def train(
    context: typer.Context,
    dataset: Dataset = "",
    root: Root = None,
    output: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("model.safetensors"),
    model: Annotated[str, typer.Option(help="image, lca, text, score_fusion, concat or embracenet.")] = "image",
    backbone: Annotated[str, typer.Option(help="auto: lite0 for --frozen, lite2 otherwise.")] = "auto",
    frozen: Annotated[bool, typer.Option(help="Train a linear classifier on frozen features: minutes.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, max=10**6, help="Passes over the training split.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or sgd with momentum as in the papers.")] = "adamw",
    preset: Annotated[str, typer.Option(help="grocery_best or grozi_best: the best for that data set.")] = "",
    hold_out: Annotated[bool, typer.Option("--hold-out", help="With --preset: learn from `train` alone.")] = False,
    seed: Seed = 0,
    force: Force = False,
    json_line: JsonLine = False,
):
    """Train a recogniser with packaged weights; by default the whole network, about 40 minutes on two cores.

    The same command goes on after an interrupt. An output that the same training made is used again, but for presets,
    whose members are kept in the cache instead.

    Examples: `retailkit train --dataset grocery_store --root path/to/dataset`,
    `retailkit train --dataset folder --root photos --frozen --model concat`,
    `retailkit train --preset grocery_best --root path/to/dataset`
    """
    check_output(output, [root], force)
    before = file_identity(output)
    if output.exists() and not preset:
        print(f"{output} is there: it is used again if the same training made it, and replaced otherwise")
    if preset:
        for name in ("dataset", "model", "backbone", "frozen", "epochs", "optimizer"):
            if context.get_parameter_source(name).name == "COMMANDLINE":
                raise UsageError(f"--{name} does not go with --preset, which decides it; leave one of them out")
        from retailkit import recipes

        return _trained(recipes.train(preset, output, root, seed, hold_out), before, json_line)
    if hold_out:
        raise UsageError("--hold-out goes with --preset only; other trainings never learn from val")

    from retailkit import data, models, training
    from retailkit.data import ocr

    products = data.load(dataset := _name(dataset, root), root)
    if "text" in models.MODELS[pick(models.MODELS, model, "model")].modalities:
        products = ocr.add_text(products)
    name, profile = ("probe", "fast") if frozen else ("finetune", "full")
    options = {} if backbone == "auto" else {"backbone": backbone}
    if model == "text":
        options["missing"] = "prior"  # the answer to an image without words; the others have the image
    changes = {} if epochs is None else {"epochs": epochs}
    changes |= {"optimizer": optimizer} | training.RATES[pick(training.RATES, optimizer, "optimizer")]
    spec = training.reference(name, dataset, root, profile, seed, model, options=options, **changes)
    print(products)
    trained, history = training.fit_or_load(spec, products, output)
    facts = {"checkpoint": str(output), "seconds": round(history.seconds, 1), "best_epoch": history.best_epoch}
    if "val" in products.splits:
        facts["val"] = training.evaluate(trained, products.split("val", trained.input_size)).summary()
    _trained(facts, before, json_line)


def _trained(facts: dict, before: str, json_line: bool) -> None:
    """Report a training, and whether its checkpoint, whose identity was `before`, has been replaced."""
    done = "written" if before == facts["checkpoint"] else "replaced"
    _report(facts | {"output": "used again" if file_identity(facts["checkpoint"]) == before else done}, json_line)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    dataset: Dataset = "",
    root: Root = None,
    split: Annotated[str, typer.Option(help="train, val or test; val+test takes both.")] = "test",
    predictions: Annotated[Path | None, typer.Option(help="CSV to write: one row an image.")] = None,
    force: Force = False,
    json_line: JsonLine = False,
):
    """Evaluate a checkpoint on a split: top-1, macro F1, n, the 95 % interval, and the classes most often confused.

    Example: `retailkit evaluate --dataset grocery_store --root DIR --split test --checkpoint model.safetensors --json`
    """
    from retailkit import data, recipes, training
    from retailkit.data import ocr

    dataset = _name(dataset, root)
    if predictions:
        check_output(predictions, [root, checkpoint], force)
    model, _, facts = training.load_checkpoint(checkpoint)
    recipe = recipes.RECIPES.get(facts.get("preset"))
    options = recipe.data_options if recipe and recipe.dataset == dataset else {}
    products = training.with_classes(data.load(dataset, root, **options), model)
    if "text" in model.modalities:
        products = ocr.add_text(products.select(products.table["split"].isin(split.split("+")).to_numpy()))
    part = products.split(split, facts["size"], facts["fit"])
    result = training.evaluate(model, part)
    if predictions:
        rows = result.to_frame().assign(image=part.table["image"].to_numpy())
        with replacing(predictions) as draft:
            rows.to_csv(draft, index=False, errors="surrogateescape")  # file names are bytes
    print(*result.sentences(split), sep="\n")
    if known := training.learned_from(facts, part):
        print(f"{len(known)} of these photos trained this model, such as {known[0]}: they say nothing about new ones.")
    _report(result.summary() | {"split": split, "dataset": dataset}, json_line)


@app.command()
def explain(
    photo: Annotated[Path, typer.Argument(help="Image file.")],
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option(help="An .html page or a .safetensors file.")] = Path("explanation.html"),
    classes: Annotated[str, typer.Option(help="top1, top3, ..., or the name of a class.")] = "top3",
    contrast: Annotated[str, typer.Option(help="runner_up, or the name of the class to compare with.")] = "runner_up",
    unit: Annotated[str, typer.Option(help="What of the text is hidden as a whole: word or line.")] = "word",
    link_ocr: Annotated[bool, typer.Option("--link-ocr", help="Hide a word on the image together with it.")] = False,
    budget: Annotated[int, typer.Option(min=1, max=10**5, help="Masked images; more are more stable.")] = 512,
    seed: Seed = 0,
    force: Force = False,
    json_line: JsonLine = False,
):
    """Explain what a model says of one photo: which parts of the image and which words, and how far to trust it.

    Example: `retailkit explain shelf.jpg --checkpoint model.safetensors --output why.html`
    """
    from retailkit import training
    from retailkit.data import folder, ocr
    from retailkit.explain import lime
    from retailkit.widgets.page import explanation_page

    if output.suffix not in (".html", ".safetensors"):
        raise UsageError(f"output={output} has an unknown suffix; use .html or .safetensors")
    check_output(output, [photo, checkpoint], force)
    model, _, facts = training.load_checkpoint(checkpoint)
    photos = folder.photos([photo], model.classes)
    if "text" in model.modalities:
        photos = ocr.add_text(photos)
    sample = photos.split("test", facts["size"], facts["fit"])[0]
    chosen = {"classes": classes, "contrast": contrast, "token": unit, "link_ocr": link_ocr, "seed": seed}
    found = lime.explain(model, sample.image, sample.words, budget=budget, **chosen)
    if output.suffix == ".html":
        with replacing(output) as draft:
            draft.write_text(explanation_page(found, sample.image), encoding="utf-8")
    else:
        found.save(output)
    _report(_gist(found) | {"output": str(output)}, json_line)


@app.command()
def export(
    checkpoint: Checkpoint,
    dataset: Dataset = "",
    root: Root = None,
    split: Annotated[str, typer.Option(help="Photos to measure on: train, val or test.")] = "test",
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("export"),
    force: Force = False,
    json_line: JsonLine = False,
):
    """Export an `image` or `lca` model: ONNX, preprocessing, class names, a program that uses them, and a model card.

    The ONNX model has to agree with PyTorch on the split, or nothing is written. The card says what this model reaches
    on the split: accuracy by class and condition, confusions, calibration, speed and size.

    Example: `retailkit export --checkpoint model.safetensors --dataset folder --root photos --output shop`
    """
    from retailkit.export import export as write

    report = write(checkpoint, output, _name(dataset, root), root, split, force)
    gist = {name: report["evaluation"][name] for name in ("top1", "interval", "n", "calibration_error")}
    gist |= {name: report[name] for name in ("difference_from_pytorch", "megabytes", "milliseconds")}
    _report({"output": str(output)} | gist, json_line)


@app.command()
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
    dataset, options = _name(dataset, root), {} if backbone == "auto" else {"backbone": backbone}
    spec = training.reference(mode, dataset, root, profile, options=options)
    side = size or models.build("image", ["any"], **spec.model_options).input_size
    found = study.labelled_by(training.repetition(data.load(dataset, root), 0), labels)
    products, bare = backgrounds.masked(found), (found.table["mask"] == "").sum()
    if bare:
        print(f"GrabCut: {bare - (products.table['mask'] == '').sum()} of {bare} masks accepted")
    scenes = [backgrounds.VariantSplit.read(products.split(name, side)) for name in ("train", "test")]
    cells = study.run(*scenes, spec, rows, columns, range(seeds), folder)
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


def _gist(found) -> dict:
    """Return the gist of a local explanation."""
    words = found.words()
    return {
        "label": found.classes[found.explained[0]],
        "probability": round(float(found.probs[found.explained[0]]), 4),
        "question": found.question,
        "speaks_for": words["text"][words["low"] > 0].head(3).tolist(),
        "speaks_against": words["text"][words["high"] < 0].tail(3).tolist()[::-1],
        "r2": None if found.nothing else round(float(found.r2[0]), 3),
        "nothing": found.nothing,
        **found.evaluations,
    }


def _report(facts: dict, json_line: bool) -> None:
    if json_line:
        print(to_json(facts))
        return
    for name, value in facts.items():
        if value not in ("", []):
            print(f"{name}: {_plain(value)}")


def _plain(value) -> str:
    """Return a fact as people read it: three decimals, and commas between the parts of a whole."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


@app.command(name="app")
def show(
    dataset: Dataset = "",
    root: Root = None,
    profile: Profile = "fast",
    checkpoint: Annotated[Path | None, typer.Option(help="Explain this model, which `retailkit train` wrote.")] = None,
    models: Annotated[str, typer.Option(help="Models, with commas between them.")] = "score_fusion,image,text",
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

    dataset = pick(DATASETS, _name(dataset, root), "data set")
    pick(PROFILES, profile, "profile")
    for name in models.split(","):
        pick(MODELS, name, "model")
    where = {"ROOT": root, "CHECKPOINT": checkpoint}
    given = {"PROFILE": profile, "DATASET": dataset, "MODELS": models}
    given |= {name: str(path.resolve()) if path else "" for name, path in where.items()}
    page.serve(given, ip, port, token, browser)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Benchmarks; none means all.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for the rows.")] = None,
    quick: Annotated[bool, typer.Option(help="Under five minutes in all.")] = False,
    force: Force = False,
):
    """Measure side by side in one run: rows of name, case, baseline, seconds, ratio, agreement.

    Example: `retailkit bench render ocr --csv bench.csv --quick`
    """
    import subprocess

    from retailkit import runs

    folder = runs.record.home() / "tests" / "benchmarks"
    known = {path.stem.removeprefix("test_"): path for path in sorted(folder.glob("test_*.py"))}
    chosen = [known[pick(known, name, "benchmark")] for name in names or known]
    environment = os.environ | {"RETAILKIT_BENCH_QUICK": str(int(quick))}
    if csv:
        check_output(csv, force=force)
        environment["RETAILKIT_BENCH_CSV"] = str(csv.resolve())
    command = [sys.executable, "-m", "pytest", "-m", "benchmark", "-n", "0", "-s", *map(str, chosen)]
    raise typer.Exit(subprocess.run(command, cwd=runs.record.home(), env=environment).returncode)


def main() -> None:
    """Run the command line; whatever fails ends in one line per fault on stderr and an exit code."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show
    warnings.showwarning = lambda message, *where, **more: typer.secho(f"warning: {message}", fg="yellow", err=True)
    try:
        if (code := app(words, standalone_mode=False) or 0) == 130:  # Typer makes it of an interrupt, without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            raise
        line, code = explained(error)
        typer.secho(f"retailkit: {line}", fg="red", err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
