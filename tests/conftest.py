"""No test reaches beyond this machine, and none touches the user's cache."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

LONGEST = ("test_notebooks.py", "test_browser.py")
LOCAL = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def session(tmp_path_factory):
    """Refuse connections to other machines, mind Ctrl-C, and take one cache for the session and all its workers.

    A test that needs a cache of its own sets RETAILKIT_CACHE itself. A process in the background of a shell, which
    tests may be, does not mind Ctrl-C.
    """
    connect, base = socket.socket.connect, tmp_path_factory.getbasetemp()

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOCAL):
            raise OSError(f"a test tried to reach {address[0]}: tests work offline")
        return connect(self, address)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setenv("RETAILKIT_CACHE", str((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "cache"))
        yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for one test."""
    monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout without notebooks, entered; `add(name, parameters, body)` writes one and returns its path."""
    import nbformat

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAILKIT_RUN_DIR", raising=False)
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")  # torch need not be imported to know
    (tmp_path / "notebooks").mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

    def add(name, parameters, body=""):
        cells = [nbformat.v4.new_code_cell(source) for source in (parameters, body)]
        cells[0].metadata["tags"] = ["parameters"]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
        return path

    return add


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Call the command in an empty folder, word by word; returns exit code, stdout and stderr."""
    from retailkit import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RETAILKIT_DATA", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["retailkit", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code or 0, output.out, output.err

    return run


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """A folder with photos of two classes, and a checkpoint and an explanation of theirs."""
    import hostile

    home = tmp_path_factory.mktemp("stock")
    hostile.photos(home)
    hostile.checkpoint(home)
    return home


@pytest.fixture
def shop(stock, command, tmp_path, monkeypatch, capsys):
    """A copy of the stock, entered, in which bad input is put to the package."""
    import hostile

    shutil.copytree(stock, tmp_path / "shop")
    monkeypatch.chdir(tmp_path / "shop")
    monkeypatch.setenv("COLUMNS", "400")
    return hostile.Shop(tmp_path / "shop", command, monkeypatch, capsys)


ELSEWHERE = """
import os, sys

def refuse(event, values):
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir") and isinstance(values[0], (str, bytes, os.PathLike)):
        if os.path.abspath(os.fsdecode(values[0])).startswith(os.environ["HIDDEN_FOLDER"]):
            raise FileNotFoundError(2, "it lies on another machine", values[0])

sys.addaudithook(refuse)
"""


@pytest.fixture
def machines(tmp_path, tmp_path_factory):
    """Return a function that starts a dask scheduler, and one that starts a worker `of` it; each returns its process.

    A worker, and the kernels that it starts, find nothing in the folder of the test, as if it lay on another machine.
    It has a folder and a cache of its own, `folder` and `folder / "cache"`.
    """
    base, started = tmp_path_factory.mktemp("machines"), []
    (base / "sitecustomize.py").write_text(ELSEWHERE)
    paths = os.pathsep.join(filter(None, (str(base), os.environ.get("PYTHONPATH"))))

    def start(folder, scheduler, *words, **environment):
        folder.mkdir(exist_ok=True)
        words += ("--no-dashboard", "--scheduler-file", str(base / f"{scheduler}.json"))
        with (folder / "log").open("w") as log:
            new = {"start_new_session": True, "cwd": folder, "env": os.environ | environment}
            started.append(subprocess.Popen([sys.executable, "-m", "dask", *words], stdout=log, stderr=log, **new))
        return started[-1]

    def scheduler(name="scheduler"):
        process = start(base / name, name, "scheduler", "--host", "127.0.0.1", "--port", "0")
        while not (base / f"{name}.json").exists():
            assert process.poll() is None, (base / name / "log").read_text()
            time.sleep(0.1)
        return process, json.loads((base / f"{name}.json").read_text())["address"]

    def worker(name, of="scheduler"):
        own = {"RETAILKIT_CACHE": str(base / name / "cache"), "HIDDEN_FOLDER": str(tmp_path), "PYTHONPATH": paths}
        words = ("worker", "--nthreads", "1", "--host", "127.0.0.1", "--local-directory", str(base / name))
        return start(base / name, of, *words, **own), base / name

    yield scheduler, worker
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Put a worker in the place of all that `cluster.workers` starts; it sees none of our paths and has its own cache.

    Each piece gets a copy of what it reads, until it is done, and what it wrote is copied back. Returns the pieces that
    are done.
    """

    def as_done(work, pieces, label):
        for piece in pieces:
            inputs, output = (tmp_path / "elsewhere" / str(len(done)) / name for name in ("inputs", "output"))
            output.mkdir(parents=True)
            for path in piece.inputs():
                target = inputs / path.relative_to("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
            moved = pickle.loads(pickle.dumps(piece)).moved(lambda path, at=inputs: at / path.relative_to("/"), output)
            assert not {*map(str, moved.inputs())} & {*map(str, piece.inputs())}
            with monkeypatch.context() as patch:
                patch.setenv("RETAILKIT_CACHE", str(tmp_path / "elsewhere" / "cache"))
                value = work(moved)
            shutil.copytree(output, piece.output, dirs_exist_ok=True)
            shutil.rmtree(inputs.parent)
            done.append(piece)
            yield piece, value

    done, pool = [], SimpleNamespace(as_done=as_done)
    monkeypatch.setattr("retailkit.cluster.workers", lambda jobs, scheduler, shared: nullcontext(pool))
    return done


@pytest.fixture
def in_process(monkeypatch):
    """Pieces of work are done in this process, one after the other, for tests that are not about processes."""

    def as_done(work, pieces, label):
        for piece in pieces:
            with mock.patch.dict(os.environ):
                yield piece, work(piece)

    monkeypatch.setattr("retailkit.cluster.workers", lambda *given: nullcontext(SimpleNamespace(as_done=as_done)))


@pytest.fixture(scope="session")
def coloured(tmp_path_factory, draw):
    """Twelve photos of three colours, four of each, and the checkpoint of a head that learned from nine of them."""
    import torch

    from retailkit import models, training
    from retailkit.training import TrainConfig

    folder = tmp_path_factory.mktemp("coloured")
    data = draw(folder, {"train": 3, "test": 1})
    torch.manual_seed(0)
    model = models.build("image", data.classes, "timm:test_resnet", weights=None)
    history = training.fit(model, data.split("train", 48), None, TrainConfig(epochs=20, batch_size=3))
    training.save_checkpoint(model, folder / "model.safetensors", history, size=48, fit="crop")
    return data, folder / "model.safetensors"


@pytest.fixture(scope="session")
def draw():
    """Return a function that draws a data set, given a folder and the images of each class in each split.

    Images of one colour per class, with noise: learnable, but not by a model that never looks.
    """
    import numpy as np
    from PIL import Image

    from retailkit.data.table import ProductData, make_table

    def drawn(folder, per_split):
        rng, rows = np.random.default_rng(0), []
        for label, colour in {"blue": (30, 60, 200), "green": (30, 180, 60), "red": (200, 40, 40)}.items():
            for split, count in per_split.items():
                for i in range(count):
                    path = folder / f"{label}_{split}_{i}.png"
                    noise = rng.normal(0, 40, (48, 48, 3))
                    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
                    rows.append({"image": str(path), "label": label, "split": split})
        return ProductData("drawn", make_table(rows), ["blue", "green", "red"], {})

    return drawn


@pytest.fixture
def made_up_explanation():
    """Return a function that makes an explanation of two superpixels and two words.

    The right half and EXTRA support the class; the names hold what a page has to escape.
    """
    import numpy as np
    import torch

    from retailkit.data.table import Word
    from retailkit.explain.lime import LocalExplanation, Options, Samples
    from retailkit.explain.masking import Token

    def made_up(nothing=""):
        words = [Word("EXTRA", (1, 1, 6, 3)), Word("<LEAN>", (1, 4, 6, 6))]
        image_weights, text_weights = np.array([[-0.5, 1.0]]), np.array([[2.0, 0.0]])
        masks = np.ones((1, 2), bool)
        return LocalExplanation(
            classes=["extra lean", "lean <3 %>"],
            explained=(0,),
            contrasts=(1,),
            image=torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)),
            segments=np.repeat([[0] * 8 + [1] * 8], 16, 0),
            tokens=tuple(Token(word.text, (word,)) for word in words),
            links=np.array([-1, -1]),
            logits=np.array([1.0, 0.0]),
            image_weights=image_weights,
            text_weights=text_weights,
            image_intervals=np.stack([image_weights - 0.25, image_weights + 0.25], 2),
            text_intervals=np.stack([text_weights - 0.25, text_weights + 0.25], 2),
            r2=np.array([0.2]),
            share=np.array([0.6]),
            share_intervals=np.array([[0.5, 0.7]]),
            samples=Samples(masks, masks.copy(), np.zeros((1, 2), int), np.zeros((1, 2), np.float32)),
            options=Options(),
            nothing=nothing,
        )

    return made_up


def pytest_collection_modifyitems(items):
    """Start with the longest files, so that no worker waits for them at the end.

    `--no-loadscope-reorder` keeps that order: by itself pytest-xdist starts with the files that hold most tests.
    """
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
