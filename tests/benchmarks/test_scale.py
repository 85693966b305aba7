"""Two workers beside one: eight runs of a notebook, and explanations of 64 photos. Each worker has one thread."""

import json
import os
from pathlib import Path

import pytest

from retailkit import data, runs
from retailkit.explain.lime import Options
from retailkit.explain.split import explain_split

ROOT = Path(__file__).parents[2]
PAYS = 1.7  # times as fast as one worker
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def records(folder):
    """Return what the runs of a sweep measured, without how long they took."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.rglob("00_welcome.json"))}
    return {name: record["metrics"] for name, record in found.items()}


@needs_two_cores
def test_a_sweep(compare, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, settings = runs.notebooks(["00"]), [{"SEED": seed} for seed in range(1, 5 if quick else 9)]
    runs.execute(path, output=tmp_path / "first")  # what all need is rendered and encoded

    def execute(jobs):
        done = runs.execute(path, jobs=jobs, fresh=True, sweep=settings)
        assert all(result.status == "ok" for result in done)
        return [records(result.folder) for result in done]

    both = {"reference": lambda: execute(1), "ours": lambda: execute(2)}
    case = f"{len(settings)} runs of 00"
    assert compare("scale", case, "one worker", **both, agreement=lambda a, b: a != b, repeat=1) > PAYS


@needs_two_cores
def test_explanations(compare, quick, command, tmp_path):
    photos = data.load("synthetic").table.query("split == 'test'")[: 16 if quick else 64]
    csv = tmp_path / "photos.csv"
    photos[["image", "label"]].assign(split=["train", "test"] * (len(photos) // 2)).to_csv(csv, index=False)
    code, _, err = command("train", "--root", csv, "--frozen", "--output", "model.safetensors")
    assert code == 0, err

    def explain(jobs):
        folder = tmp_path / f"by_{jobs}"
        done = explain_split(Path("model.safetensors"), "folder", csv, "train+test", folder, Options(), jobs)
        assert done == (len(photos), 0, [])
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    both = {"reference": lambda: explain(1), "ours": lambda: explain(2)}
    case = f"{len(photos)} photos explained"
    assert compare("scale", case, "one worker", **both, agreement=lambda a, b: a != b, repeat=1) > PAYS
