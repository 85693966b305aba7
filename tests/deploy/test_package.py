"""The exported folder: it answers as PyTorch does, and a failure leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from retailkit import cli, data, deploy, models, training
from retailkit.config import UsageError, UserError
from retailkit.deploy import graph, measure, package, predict

from .conftest import CLASSES, SIDE, checkpoint, draw


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_folder_holds_what_a_shop_needs_and_nothing_else(exported):
    found, _ = exported
    assert {path.name for path in found.folder.iterdir()} == set(package.MADE)
    assert [p.name for p in found.folder.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_graph_equals_pytorch_on_any_number_of_photos(exported, count):
    found, path = exported
    model, _, _ = training.load_checkpoint(path)
    images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
    (probs,) = session(found.folder / "model.onnx").run(["probs"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = model(images).softmax(-1).numpy()
    assert probs.shape == (count, len(CLASSES)) and np.abs(probs - expected).max() < 1e-4
    assert np.ptp(expected) > 0.2, "answers that vary, or equality would say little"


@pytest.mark.parametrize("options", [{}, {"width": 8}, {"per_kernel": True}])
def test_lca_is_exported_as_well(options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("lca", CLASSES, backbone="shufflenet_v2_x1_0", weights=None, **options).eval()
    made = measure.onnx(graph.float32_graph(model, SIDE), 1)
    for count in (1, 3):
        images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        assert np.abs(made(images) - measure.pytorch(model)(images)).max() < 1e-4


def test_int8_runs_and_knows_the_same_classes(exported):
    found, _ = exported
    small, whole = (session(found.folder / name) for name in ("model.int8.onnx", "model.onnx"))
    assert small.get_outputs()[0].shape == whole.get_outputs()[0].shape
    probs = small.run(None, {"images": np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)})[0]
    assert probs.shape == (3, len(CLASSES)) and np.allclose(probs.sum(1), 1, atol=1e-5)
    files = found.files.set_index("file")
    assert files.loc["model.int8.onnx", "megabytes"] < 0.5 * files.loc["model.onnx", "megabytes"]
    assert (found.folder / "model.onnx").stat().st_size == round(files.loc["model.onnx", "megabytes"] * 1e6)


@pytest.mark.parametrize("fit", ["crop", "pad", "squeeze"])
def test_the_program_prepares_photos_bit_by_bit_as_the_data_set_does(shop, fit):
    told = {"side": SIDE, "fit": fit, "short_side": round(SIDE / 0.875), "pad_level": 128}
    part = data.load("folder", shop).split("test", SIDE, fit)
    for i, file in enumerate(part.table["image"]):
        assert np.array_equal(predict.prepare(file, told)[0], part[i].image.numpy()), file


def test_the_program_reads_unusual_pictures_as_the_data_set_does(tmp_path):
    from PIL import Image

    from retailkit.data.table import read_image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 31, 3), dtype=np.uint8))
    turned, files = Image.Exif(), [tmp_path / f"{name}.png" for name in ("grey", "palette", "alpha", "deep", "turned")]
    turned[0x0112] = 6
    picture.convert("L").save(files[0])
    picture.convert("P").save(files[1])
    picture.convert("RGBA").rotate(20).save(files[2])
    Image.new("I;16", (9, 8), 30000).save(files[3])
    picture.save(files[4], exif=turned)
    for file in files:
        assert np.array_equal(predict.read(file), read_image(file)), file.name


def test_the_program_runs_without_retailkit_and_prints_what_pytorch_says(exported, shop, tmp_path):
    found, path = exported
    model, _, _ = training.load_checkpoint(path)
    part = data.load("folder", shop).split("test", SIDE, "crop")
    files = part.table["image"].tolist()[:3]
    command = [sys.executable, "-I", str(found.folder / "predict.py"), "--top", "1", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for i, line in enumerate(done.stdout.splitlines()):
        with torch.inference_mode():
            probs = model(part[i].image[None]).softmax(-1)[0]
        name, value = line.removeprefix(f"{files[i]}: ").rsplit(" ", 1)
        assert name == CLASSES[int(probs.argmax())] and abs(float(value) - float(probs.max())) < 1e-4
    assert "retailkit" not in {line.split()[1] for line in Path(predict.__file__).read_text().splitlines()
                               if line.startswith(("import ", "from "))}  # fmt: skip
    assert found.script < 1e-4


def test_the_same_checkpoint_gives_the_same_preprocessing_and_graph(exported, shop, tmp_path):
    found, path = exported
    again = deploy.export(path, tmp_path / "again", "folder", shop, int8=False, records=[])
    for name in ("preprocessing.json", "model.onnx", "predict.py"):
        assert (again.folder / name).read_bytes() == (found.folder / name).read_bytes(), name
    told = json.loads((again.folder / "preprocessing.json").read_text())
    assert told["classes"] == CLASSES and told["fit"] == "crop" and told["side"] == SIDE
    assert told["checkpoint"] == training.fingerprint(training.load_checkpoint(path)[0])
    assert not (again.folder / "model.int8.onnx").exists() and again.no_int8 == "not asked for"
    assert "int8_loss" not in set(again.card.checklist["criterion"])


@pytest.mark.parametrize(
    "name, options, part",
    [
        ("concat", {"text_encoder": "char_ngrams"}, "reads text"),
        ("nts", {}, "'nts'"),
        ("matching", {}, "no single graph"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_with_those_that_can(name, options, part):
    given = options if name == "matching" else options | {"backbone": "shufflenet_v2_x1_0", "weights": None}
    model = models.build(name, CLASSES, **given)
    with pytest.raises(UsageError, match=part) as said:
        graph.float32_graph(model, SIDE)
    assert "`image` or `lca`" in str(said.value)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    root = draw(tmp_path / "photos", {"train": 2, "val": 2})
    with pytest.raises(UserError, match=r"no 'test' split .it has: train, val"):
        deploy.export(checkpoint(tmp_path / "m.safetensors"), tmp_path / "out", "folder", root)
    assert not (tmp_path / "out").exists()


def test_without_training_photos_there_is_no_int8_and_the_card_says_why(tmp_path):
    root = draw(tmp_path / "photos", {"test": 3})
    found = deploy.export(checkpoint(tmp_path / "m.safetensors"), tmp_path / "out", "folder", root, records=[])
    assert "no training photos" in found.no_int8 and not (found.folder / "model.int8.onnx").exists()
    assert "no training photos" in (found.folder / "card.md").read_text()


def test_a_graph_that_disagrees_is_not_written_and_the_old_export_stays(shop, tmp_path, monkeypatch):
    path, folder = checkpoint(tmp_path / "m.safetensors"), tmp_path / "out"
    deploy.export(path, folder, "folder", shop, int8=False, records=[])
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    other = checkpoint(tmp_path / "other.safetensors", fit="pad")
    right = graph.float32_graph

    def wrong(model, side):
        model.head.linear.weight.data.neg_()
        made = right(model, side)
        model.head.linear.weight.data.neg_()
        return made

    monkeypatch.setattr(graph, "float32_graph", wrong)
    with pytest.raises(UserError, match=r"differ by .* accepted is 0\.0001"):
        deploy.export(other, folder, "folder", shop, int8=False, records=[])
    monkeypatch.setattr(graph, "float32_graph", right)
    monkeypatch.setattr(package, "_write_card", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="cannot be written"):
        deploy.export(other, folder, "folder", shop, int8=False, records=[])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "other.safetensors", "out"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis.docx"):
        deploy.export(tmp_path / "none.safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.docx").read_text() == "years of work"


def test_the_command_exports_and_prints_one_json_line(shop, tmp_path, monkeypatch, capsys):
    path = checkpoint(tmp_path / "m.safetensors")
    words = ["export", "--checkpoint", path, "--dataset", "folder", "--root", shop, "--output", tmp_path / "out"]
    words += ["--no-int8", "--json", "--criterion", "accuracy=0", "--split", "test"]
    monkeypatch.setattr(sys, "argv", ["retailkit", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not ended.value.code and said["decision"] in ("go", "no-go", "not decided") and said["n"] == 15
    assert "accuracy" in said["criteria"]["go"] and said["float32"]["difference"] < 1e-4
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["decision"] == said["decision"] and len(report["by_class"]) == len(CLASSES)
