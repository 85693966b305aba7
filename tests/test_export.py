"""The exported folder: it answers as PyTorch does, its card counts correctly, and a failure writes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import data, export, models, training
from retailkit.config import UsageError, UserError
from retailkit.data.images import FORMATS, read_image
from retailkit.export import predict
from retailkit.metrics import Evaluation

SIDE = 64
CLASSES = ["<b>bold</b> | milk", "juice", "tea"]
FILES = {"model.onnx", "preprocessing.json", "predict.py", "report.json", "card.md"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A CSV of five noisy test photos of each class, of odd sizes; the condition is `dark` for every other one."""
    folder, rng, rows = tmp_path_factory.mktemp("shop"), np.random.default_rng(0), []
    for k, label in enumerate(CLASSES):
        for i in range(5):
            pixels = rng.normal(60 + 60 * k, 50, (70 + 5 * i, 90 + 3 * k, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{k}_{i}.png")
            rows.append((f"{k}_{i}.png", label, "test", "dark" if i % 2 else "front"))
    pd.DataFrame(rows, columns=["image", "label", "split", "condition"]).to_csv(folder / "photos.csv", index=False)
    return folder / "photos.csv"


def saved(model, path, size):
    return training.save_checkpoint(model, path, training.History(pd.DataFrame(), 0, 0.0), size=size, fit="crop")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network with random weights whose normalisation fits images, so that its answers vary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("image", CLASSES, backbone="shufflenet_v2_x1_0", weights=None)
        images = torch.rand(16, 3, SIDE, SIDE) * torch.rand(16, 3, 1, 1)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # a plain average of what is seen
        with torch.no_grad():
            model.train()(images)
            model.eval().fit_scalers(model.encode_frozen(images))
    return saved(model, tmp_path_factory.mktemp("checkpoint") / "m.safetensors", SIDE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint, shop):
    """The folder that was exported, and its report."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export.export(checkpoint, folder, "folder", shop)


def expected_probs(checkpoint, images):
    model, _, _ = training.load_checkpoint(checkpoint)
    with torch.inference_mode():
        return model(images).softmax(-1).numpy()


def test_the_graph_equals_pytorch_on_any_number_of_images(exported, checkpoint):
    folder, report = exported
    assert {path.name for path in folder.iterdir()} == FILES
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(count))
        (probs,) = session.run(["probs"], {"images": images.numpy()})
        expected = expected_probs(checkpoint, images)
        assert probs.shape == (count, len(CLASSES)) and np.abs(probs - expected).max() < 1e-4
        assert np.ptp(expected) > 0.2, "answers that vary, or equality would say little"
    assert max(report["difference_from_pytorch"].values()) < 1e-4 and report["milliseconds"]["onnx"] > 0
    assert report["evaluation"]["n"] == 15 and len(report["by_class"]) == len(CLASSES)
    assert json.loads((folder / "report.json").read_text()) == report


def test_a_vision_transformer_is_exported_at_another_size_than_its_own(shop, tmp_path):
    """ONNX has no operation that resamples the embedding of positions."""
    model = models.build("image", CLASSES, backbone="timm:test_vit", weights=None).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    report = export.export(saved(model, tmp_path / "m.safetensors", SIDE + 10), tmp_path / "out", "folder", shop)
    assert max(report["difference_from_pytorch"].values()) < 1e-4


def test_the_program_prepares_photos_bit_by_bit_as_the_data_set_does(shop, checkpoint):
    model = training.load_checkpoint(checkpoint)[0]
    for fit in ("crop", "pad", "stretch"):
        preparation = export.preprocessing(model, SIDE, fit)
        part = data.load("folder", shop).split("test", SIDE, fit)
        for i, file in enumerate(part.table["image"]):
            assert np.array_equal(predict.prepare(file, preparation)[0], part[i].image.numpy()), f"{fit} {file}"


LEVELS = np.linspace(0, 1, 72, dtype=np.float32).reshape(8, 9)
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 31, 3), dtype=np.uint8))
UNUSUAL = {  # images of kinds that shops have
    "grey.png": PHOTO.convert("L"),
    "palette.png": PHOTO.convert("P"),
    "cut out.png": PHOTO.convert("RGBA").rotate(20),
    "cmyk.jpg": PHOTO.convert("CMYK"),
    "deep.png": Image.fromarray((LEVELS * 60000).astype(np.uint16)),
    "float up to 1.tif": Image.fromarray(LEVELS),
    "float up to 255.tif": Image.fromarray(LEVELS * 255),
}


def test_the_program_reads_unusual_images_as_the_package_does(tmp_path):
    """A float TIFF with values up to 1 used to be read as black."""
    for name, image in UNUSUAL.items():
        image.save(tmp_path / name)
    for orientation in range(2, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        PHOTO.save(tmp_path / f"turned {orientation}.png", exif=exif)
    for file in tmp_path.iterdir():
        read = predict.read(file)
        assert np.array_equal(read, read_image(file)) and read.max() > 200, file
    assert predict.FORMATS == FORMATS


def test_the_program_runs_without_retailkit_and_says_what_pytorch_says(exported, checkpoint, shop, tmp_path):
    folder, _ = exported
    part = data.load("folder", shop).split("test", SIDE, "crop")
    files = part.table["image"].tolist()[:3]
    command = [sys.executable, "-I", str(folder / "predict.py"), "--top", "1", *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = expected_probs(checkpoint, torch.stack([part[i].image for i in range(3)]))
    for file, line, probs in zip(files, done.stdout.splitlines(), expected, strict=True):
        name, value = line.removeprefix(f"{file}: ").rsplit(" ", 1)
        assert name == CLASSES[int(probs.argmax())] and abs(float(value) - float(probs.max())) < 1e-4
    imports = re.findall(r"^\s*(?:import|from) (\w+)", Path(predict.__file__).read_text(), re.M)
    assert {*imports} - sys.stdlib_module_names == {"numpy", "PIL", "onnxruntime"}


NAMES = ["<b>milk</b> | whole", "milk", "tea", "unseen"]
ANSWERS = [(0, 0), (0, 1), (0, 1), (1, 1), (1, 0), (1, 1), (2, 2), (2, 2)]  # label, prediction


def test_a_card_counts_as_by_hand_and_names_cannot_break_its_tables(exported):
    """8 photos, 5 of them classified correctly, 3 confusing milk and whole milk."""
    labels, predicted = np.array(ANSWERS).T
    probs = np.full((8, 4), 0.05) + 0.8 * np.eye(4)[predicted]
    table = pd.DataFrame({"condition": ["dark"] * 3 + ["front"] * 4 + [""]}, index=range(20, 28))
    report = export.measurements(Evaluation(probs, labels, NAMES, np.arange(8)), table)
    assert report["evaluation"]["top1"] == 5 / 8 and report["evaluation"]["n"] == 8 and report["unseen"] == ["unseen"]
    by_class = {row["label"]: (row["accuracy"], row["n"]) for row in report["by_class"]}
    assert by_class == {NAMES[0]: (pytest.approx(1 / 3), 3), "milk": (pytest.approx(2 / 3), 3), "tea": (1, 2)}
    by_condition = [(row["condition"], row["n"], row["accuracy"]) for row in report["by_condition"]]
    assert by_condition == [("dark", 3, pytest.approx(1 / 3)), ("front", 4, 0.75)]
    (pair,) = report["confused"]
    assert (pair["errors"], pair["rate"]) == (3, 0.5) and report["confidence"] == pytest.approx(0.85)
    text = export.model_card(exported[1] | report)
    assert "<b>" not in text and r"| &lt;b&gt;milk&lt;/b&gt; \| whole | 0.333 (0.061 to 0.792) | 3 |" in text
    assert "| dark | 0.333" in text and "1 classes have no photo in this split" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


PLAIN = {"backbone": "shufflenet_v2_x1_0", "weights": None}


TEXT = PLAIN | {"text_encoder": "char_ngrams"}


@pytest.mark.parametrize(
    "name, options, part", [("concat", TEXT, "reads text"), ("nts", PLAIN, "'nts'"), ("matching", {}, "one")]
)
def test_a_model_that_cannot_be_exported_is_refused_with_those_that_can(name, options, part):
    with pytest.raises(UsageError, match=f"{part}.*; train `image` or `lca`"):
        export.require_exportable(models.build(name, CLASSES, **options))


def test_a_graph_that_disagrees_is_not_written_and_the_old_export_stays(exported, checkpoint, shop, monkeypatch):
    folder, _ = exported
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    correct = export.to_onnx

    def wrong(module, inputs, output):
        module.model.head.linear.weight.data.neg_()
        graph = correct(module, inputs, output)
        module.model.head.linear.weight.data.neg_()
        return graph

    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(UserError, match=r"differ by .*nothing was written"):
        export.export(checkpoint, folder, "folder", shop)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
