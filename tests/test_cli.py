"""The command as people call it: what it prints, and that bad calls end in one line."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image, ImageDraw, ImageFont

import retailkit
from retailkit import cli, runs
from retailkit.config import UserError
from retailkit.explain.lime import LocalExplanation

KNOBS = 'PROFILE = "fast"  # p\nDATASET = "synthetic"  # d\nROOT = ""  # r\nSEED = 0  # of all randomness'
BODY = """from retailkit import runs
run = runs.start("90_tiny")
run.metric("seed", SEED, better="none")
run.finish()"""


@pytest.fixture
def call(checkout, command):
    """Call the command in a checkout with one tiny notebook; returns exit code, stdout and stderr."""
    checkout("90_tiny", KNOBS, BODY)
    return lambda line: command(*line.split())


@pytest.fixture
def done(call):
    """Call the command, which has to end well; returns stdout, or the object in its last line."""

    def run(line):
        code, out, err = call(line)
        assert code == 0, err
        return json.loads(out.splitlines()[-1]) if "--json" in line else out

    return run


@pytest.fixture
def photos(tmp_path):
    """Two classes of three plain images; nothing else may be written into their folder."""
    for label, colour in (("milk", (240, 240, 230)), ("oat milk", (200, 170, 120))):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (64, 64), tuple(c - 9 * i for c in colour)).save(tmp_path / f"photos/{label}/{i}.jpg")
    before = {*tmp_path.glob("photos/**/*")}
    yield tmp_path / "photos"
    assert {*tmp_path.glob("photos/**/*")} == before


BAD_CALLS = {  # command: exit code, and what the line names
    "rnu": (2, "rnu"),
    "run --profil fast": (2, "--profile"),
    "run --profile fsat": (2, "did you mean 'fast'"),
    "run --dataset grocery_stor": (2, "did you mean 'grocery_store'"),
    "run 90_tyni": (2, "did you mean '90_tiny'"),
    "run -p SED=1": (2, "did you mean 'SEED'"),
    "run -p SEED": (2, "NAME=VALUE"),
    "run -p PROFILE=full": (2, "--profile"),
    "run --update -p SEED=1": (2, "--parameter"),
    "run --jobs 0": (2, "--jobs"),
    "fetch weights": (2, "fetch weights NAME"),
    "fetch weights resnet5O": (2, "resnet50"),
    "fetch grozi12": (2, "grozi120"),
    "check --dataset folder --root nowhere": (1, "nowhere"),
    "train --preset grocery_best --epochs 2": (2, "--epochs does not go with --preset"),
    "train --preset grocery_best --dataset synthetic": (2, "--dataset does not go with --preset"),
    "train --hold-out": (2, "--hold-out goes with --preset only"),
    "train --output .": (2, "output=. is a folder; name a file"),
    "evaluate --checkpoint none.safetensors": (1, "none.safetensors"),
    "explain none.jpg --checkpoint none.safetensors": (1, "none.safetensors"),
    "explain none.jpg --checkpoint m.safetensors --output a.pdf": (2, ".html"),
    "export --checkpoint none.safetensors": (1, "none.safetensors"),
    "matrix --mode prob": (2, "did you mean 'probe'"),
    "train --root photos --backbone efficientnet_lite": (2, "did you mean 'efficientnet_lite"),
    "matrix --seeds 0": (2, "--seeds"),
    "bench rendr": (2, "rendr"),
}


@pytest.mark.parametrize("line", BAD_CALLS)
def test_a_bad_call_ends_in_one_line(call, photos, tmp_path, line):
    (tmp_path / "tests" / "benchmarks").mkdir(parents=True)
    (tmp_path / "tests" / "benchmarks" / "test_render.py").touch()
    expected, part = BAD_CALLS[line]
    code, _, err = call(line)
    assert code == expected, err
    assert part in err and err.count("\n") == 1 and err.startswith("retailkit: ") and "Traceback" not in err


def test_help_has_an_example(call):
    for command in typer.main.get_command(cli.app).commands.keys() - {"list"}:
        code, out, _ = call(f"{command} --help")
        assert code == 0 and f"retailkit {command}" in out.split("Options")[0], command


def test_list_names_notebooks_and_their_parameters(done):
    assert all(said in done("list") for said in ("90_tiny", "of all randomness", "never"))


SPOILT = {  # what is wrong with photos/milk/1.jpg, or with a table: what the error names
    "text for an image": "1.jpg",
    "image,product\nphotos/milk/0.jpg,milk": "label",
}


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_data_ends_a_check_and_a_training_in_one_line(call, photos, how):
    root, victim = photos, photos / "milk" / "1.jpg"
    assert "6 images" in call("check --root photos")[1]
    if how.startswith("image,"):
        root = photos.with_name("table.csv")
        root.write_text(f"{how}\n")
    else:
        victim.write_bytes(b"no image")
    for line in (f"check --root {root}", f"train --root {root} --frozen --epochs 1"):
        code, out, err = call(line)
        last = err.strip().splitlines()[-1]
        assert code == 1 and last.startswith("retailkit: ") and SPOILT[how] in out + last and "Traceback" not in err
    assert not Path("model.safetensors").exists()


def test_evaluate_says_which_classes_it_confuses_and_what_it_does_not_know(call, photos):
    """Labels that are swapped in the test split are confused, all of them."""
    Image.new("RGB", (50, 40), (90, 160, 90)).save(photos.with_name("tea.png"))
    rows = [f"photos/{label}/{n}.jpg,{label},train" for label in ("milk", "oat milk") for n in (0, 1, 2)]
    rows += [
        f"photos/{of}/{n}.jpg,{to},test" for of, to in (("milk", "oat milk"), ("oat milk", "milk")) for n in (0, 1)
    ]
    photos.with_name("shop.csv").write_text("\n".join(["image,label,split", *rows, "tea.png,tea,train"]) + "\n")
    code, _, err = call("train --root shop.csv --frozen --epochs 30")
    assert code == 0 and "warning: " in err and "one image only, which is used for training: 'tea'" in err, err
    line = "evaluate --root shop.csv --checkpoint model.safetensors"
    code, out, err = call(f"{line} --json --predictions new/p.csv")
    *before, last = out.splitlines()
    facts = json.loads(last)
    assert code == 0 and facts["top1"] == 0 and {"macro_f1", "n", "interval"} <= facts.keys(), err
    assert len(Path("new/p.csv").read_text().splitlines()) == facts["n"] + 1
    assert before[0].startswith("0 of 4 test photos are classified correctly; with 4 photos")
    assert before[1] == "milk and oat milk are confused in 4 of 4 photos."
    assert before[2].startswith("4 of these photos trained this model, such as ") and "milk/0.jpg" in before[2]
    assert "interval: 0.000, 0.490" in call(line)[1]
    photos.with_name("other.csv").write_text("image,label,split\nphotos/milk/0.jpg,coffee,test\n")
    code, _, err = call("evaluate --root other.csv --checkpoint model.safetensors")
    assert code == 1 and "coffee" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(("backbone", "model"), [("timm:test_vit", "image"), ("timm:test_convnext", "lca")])
def test_a_network_of_timm_goes_through_every_command(done, photos, backbone, model):
    import torch

    from retailkit import data, training
    from retailkit.explain import saliency

    options = "--root photos --checkpoint m.safetensors --json"
    kind = f"--frozen --model {model} --backbone {backbone} --weights none --epochs 2"
    done(f"train --root photos {kind} --output m.safetensors")
    assert done(f"evaluate {options} --split train")["n"] == 2
    done("explain photos/milk/0.jpg --checkpoint m.safetensors --output why.html --budget 32")
    assert "<html" in Path("why.html").read_text()
    made = done(f"export {options} --split train --output shop")
    assert max(made["difference_from_pytorch"].values()) < 1e-4
    recogniser, _, facts = training.load_checkpoint("m.safetensors")
    sample = data.load("folder", photos).split("train", facts["size"], facts["fit"])[0]
    for method in ("gradcam", "saliency"):
        found = saliency.attribute(recogniser, sample.image[None], torch.tensor([sample.label]), method)
        assert found.shape == (1, facts["size"], facts["size"]) and found.abs().sum() > 0


def test_bench_runs_the_benchmarks_asked_for_and_hands_on_its_options(call, tmp_path):
    folder = tmp_path / "tests" / "benchmarks"
    folder.mkdir(parents=True)
    mark = "import os, pathlib, pytest\n\n@pytest.mark.benchmark\ndef test_it():\n    "
    row = "pathlib.Path(os.environ['RETAILKIT_BENCH_CSV']).write_text(os.environ['RETAILKIT_BENCH_QUICK'])\n"
    (folder / "test_render.py").write_text(mark + row)
    (folder / "test_ocr.py").write_text(mark + "assert False\n")
    code, _, err = call("bench render --csv rows.csv --quick")
    assert code == 0 and (tmp_path / "rows.csv").read_text() == "1", err
    assert call("bench ocr")[0] == 1


@pytest.mark.usefixtures("in_process")
def test_a_root_alone_is_a_folder_of_ones_own_and_nothing_is_written_into_it(call, photos):
    """Without `--dataset folder`, commands rendered the built-in set into the user's photos."""
    code, _, err = call("matrix --root photos --size 48 --train original --test only_fg --csv cells.csv")
    assert code == 1 and "mask" in err, "GrabCut finds nothing on one colour"
    assert call("run 90_tiny --root photos")[0] == 0
    assert Path("papermill_runs/latest/fast-folder/90_tiny.json").is_file()
    assert call("train --root photos --frozen --epochs 1")[0] == 0
    code, _, err = call("evaluate --dataset synthetic --root photos --checkpoint model.safetensors")
    assert code in (1, 2) and "photos" in err and err.count("\n") == 1


def test_train_says_what_becomes_of_an_output_that_is_there(done, photos):
    said = [done(f"train --root photos --frozen --epochs {epochs}").splitlines()[-1] for epochs in (1, 1, 2)]
    assert said == ["output: written", "output: used again", "output: replaced"]


@pytest.mark.usefixtures("in_process")
def test_a_changed_run_leaves_the_other_one_and_only_what_was_asked_for_counts(call, tmp_path):
    """One failed record made every later run end with code 1, and `-p` overwrote the unchanged run."""
    (tmp_path / "tests").mkdir()
    expected = "fast-synthetic:\n  90_tiny:\n    seed: {kind: exact, value: 0, reason: r}\n"
    (tmp_path / "tests" / "expected.yml").write_text(expected)
    latest = tmp_path / "papermill_runs" / "latest"
    (latest / "fast-synthetic").mkdir(parents=True)
    (latest / "fast-synthetic" / "10_other.json").write_text("{}")
    assert call("run 90")[0] == 0, "the other notebook was not asked for"
    record = (latest / "fast-synthetic" / "90_tiny.json").read_text()
    code, out, _ = call("run 90 -p SEED=3 --junit run.xml --summary run.md")
    assert code == 1 and "seed is 3, not 0" in out, "a seed switches no cause off"
    assert 'message="seed is 3, not 0' in (tmp_path / "run.xml").read_text()
    assert "seed is 3, not 0" in (tmp_path / "run.md").read_text()
    assert (latest / "fast-synthetic" / "90_tiny.json").read_text() == record
    page = (latest / "fast-synthetic,SEED=3" / "index.html").read_text()
    assert "SEED=3" in page and "-p SEED=3" in page
    assert "fast-synthetic,SEED=3: ok" in call("list")[1]


def test_a_terminal_that_is_not_utf8_shows_what_it_can(call, tmp_path, monkeypatch):
    (tmp_path / "photos" / "crème").mkdir(parents=True)
    (tmp_path / "photos" / "crème" / "0.jpg").write_text("x")
    shown = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, "ascii", write_through=True))
    assert call("check --root photos")[0] == 1
    assert b"cr\\xe8me" in shown.getvalue()


ERRORS = {
    "an interrupt": (KeyboardInterrupt(), 130, "goes on from here"),
    "a full disk": (OSError(28, "No space left", "m.safetensors"), 1, "m.safetensors: No space left; free"),
    "a forbidden file": (PermissionError(13, "Permission denied", "photos"), 1, "photos: Permission denied; check"),
    "too little memory": (MemoryError(), 1, "not enough memory; close"),
    "another encoding": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1, "save it as UTF-8"),
    "bad data": (UserError("a.csv, row 2: no label"), 1, "a.csv, row 2: no label"),
    "a fault of the program": (ZeroDivisionError("x"), 1, "ZeroDivisionError: x (test_cli.py, line "),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_ends_in_one_line(monkeypatch, capsys, case):
    error, code, part = ERRORS[case]
    monkeypatch.setattr(cli, "app", lambda words, **options: (_ for _ in ()).throw(error))
    monkeypatch.setattr(sys, "argv", ["retailkit", "run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == code and part in err and err.count("\n") == 1
    assert ("--debug" in err) == isinstance(error, ZeroDivisionError)
    monkeypatch.setattr(sys, "argv", ["retailkit", "run", "--debug"])
    with pytest.raises(type(error)):
        cli.main()


def test_an_interrupt_inside_a_command_is_not_silent(call, monkeypatch):
    monkeypatch.setattr(runs, "environment", lambda: signal.raise_signal(signal.SIGINT))
    code, _, err = call("check")
    assert code == 130 and "the same command goes on from here" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_options(shell):
    asked = {"_RETAILKIT_COMPLETE": f"complete_{shell}", "COMP_WORDS": "retailkit ev", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "retailkit ev", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    program = Path(sys.executable).parent / "retailkit"
    done = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True)
    assert "evaluate" in done.stdout and "train" not in done.stdout, done.stderr


def test_the_command_says_its_version(done):
    assert done("--version") == f"retailkit {retailkit.__version__}\n"


def test_a_model_that_reads_is_trained_and_judged_on_what_the_engine_reads(call, done, tmp_path):
    """Two products whose pictures differ in a word; the command line has to read it, at evaluation as well."""
    for label in ("LEAN", "MEDIUM"):
        (tmp_path / "shop" / label.lower()).mkdir(parents=True)
        for i in range(6):
            picture = Image.new("RGB", (200, 200), (240 - 9 * i, 240, 240))
            ImageDraw.Draw(picture).text((20, 30 + 15 * i), label, font=ImageFont.load_default(40), fill=(20, 20, 20))
            picture.save(tmp_path / "shop" / label.lower() / f"{i}.png")
    done("train --root shop --frozen --epochs 30 --model text")
    assert done("evaluate --root shop --checkpoint model.safetensors --split train --json")["top1"] == 1.0
    line = "explain shop/lean/0.png --checkpoint model.safetensors --budget 48 --json"
    facts = done(f"{line} --output why.html")
    assert facts["label"] == "lean" and facts["question"] == "why lean rather than medium"
    assert all(part in Path("why.html").read_text() for part in ("data:image/png;base64,", "lean", "medium"))
    done(f"{line} --output why.safetensors")
    assert LocalExplanation.load("why.safetensors").question == facts["question"]
    code, _, err = call(line.replace("0.png", "none.png"))
    assert code == 1 and "none.png" in err


@pytest.fixture
def shop(tmp_path):
    """Photos without masks: a light product on dark wood, and once nothing that could be cut out."""
    rng = np.random.default_rng(0)
    for label, colour in (("milk", (235, 235, 225)), ("juice", (250, 150, 30))):
        (tmp_path / "shop" / label).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(rng.normal((70, 50, 35), 12, (64, 64, 3)), 0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels)
            ImageDraw.Draw(picture).rectangle((20, 14 + i % 3, 42 + i % 4, 50), fill=colour)
            picture.save(tmp_path / "shop" / label / f"{i}.png")
    Image.new("RGB", (64, 64), (70, 50, 35)).save(tmp_path / "shop" / "milk" / "nothing.png")
    return tmp_path / "shop"


def test_the_matrix_makes_missing_masks_and_goes_on_where_it_was(call, done, shop, tmp_path):
    rows = [(path, path.parent.name, "") for path in sorted(shop.glob("*/*.png"))]
    outline = Image.new("L", (64, 64))
    ImageDraw.Draw(outline).rectangle((20, 14, 42, 50), fill=255)
    outline.save(tmp_path / "mask.png")
    rows[0] = (*rows[0][:2], tmp_path / "mask.png")
    pd.DataFrame(rows, columns=["image", "label", "mask"]).to_csv(tmp_path / "shop.csv", index=False)
    line = "matrix --root shop.csv --size 48 --folder cells --csv cells.csv --seeds 2 --train original"
    line += " --test mixed_same --test mixed_rand"
    out = done(line)
    assert "15 of 16 masks accepted" in out and "left out: 1, whose masks" in out
    assert "BG-gap of original" in out and "mixed_same" in out and "test images are too few" in out
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert cells[["train", "test", "seed"]].to_numpy().tolist() == [
        ["original", test, seed] for seed in (0, 1) for test in ("mixed_same", "mixed_rand")
    ]
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")}
    assert len(stamps) == 6, "four cells and two models"
    assert done(line).splitlines()[-2:] == out.splitlines()[-2:]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.*")} == stamps
    code, _, err = call(f"{line} --labels family")
    assert code == 2 and "use label" in err and err.strip().count("\n") == 0


@pytest.mark.check
def test_a_machine_with_its_own_disk_fills_the_matrix_as_one_process_does(done, shop, own_cache, machines, tmp_path):
    scheduler, worker = machines
    _, address = scheduler()
    worker("one")
    line = "matrix --root shop --size 48 --train original --train mixed_rand --test original --test mixed_rand"
    apart = done(f"{line} --folder apart --csv apart.csv --scheduler {address}")
    assert not (tmp_path / "cache" / "features").exists(), "nothing was encoded or trained here"
    assert done(f"{line} --folder near --csv near.csv --jobs 1") == apart
    tables = [pd.read_csv(f"{name}.csv").drop(columns=["predictions", "model"]) for name in ("near", "apart")]
    assert len(tables[0]) == 4 and tables[0].equals(tables[1])
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / f).rglob("*.csv")} for f in ("near", "apart"))
    assert len(one) == 4 and one == other


@pytest.mark.parametrize(
    "words",
    [["evaluate", "x"], ["train", "--frozen"], ["train", "--preset=grozi_best"], ["train", "--model", "gallery"]],
)
def test_what_several_processes_cannot_share_is_refused(command, monkeypatch, words):
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    code, _, said = command(*words)
    assert code == 2 and "accelerate launch trains whole networks" in said and said.count("\n") == 1
    code, _, said = command("train", "--root", "gallery", "--hold-out")
    assert code == 2 and "goes with --preset" in said, "the name of a folder is no option"
