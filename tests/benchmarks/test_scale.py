"""Two workers beside one: eight runs of a notebook, and explanations of 64 photos. Each worker has one thread.

Workers are processes of this machine, or dask workers that have folders and caches of their own and see nothing of the
client's folder. All start with copies of one cache, in which the built-in data set is rendered and encoded, and the
network of the explanations is trained and compiled; what one side adds to its cache is not there for the other.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from retailkit import cluster, data, runs
from retailkit.config import cache_dir
from retailkit.explain.lime import Options
from retailkit.explain.split import explain_split

ROOT = Path(__file__).parents[2]
PAYS = 1.7  # times as fast as one worker
pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(3600),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores"),
]


@pytest.fixture(params=["", ", disks of their own"], ids=["processes", "machines"])
def pays(request, machines, compare, monkeypatch, tmp_path):
    """Return a function that compares what one worker and two others do.

    It takes what is done, and a function of how many workers do it and of the arguments of a command that uses them.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scheduler, worker = machines

    def options(count):
        if not request.param:
            shutil.copytree(cache_dir(), tmp_path / f"cache{count}")
            return {"jobs": count}
        _, address = scheduler(f"of{count}")
        for number in range(count):
            _, folder = worker(f"of{count}-{number}", f"of{count}")
            shutil.copytree(cache_dir(), folder / "cache")
        with cluster.workers(count, address) as pool:
            pool.client.wait_for_workers(count, timeout=60)
        return {"scheduler": address}

    def compared(case, act):
        asked = {count: options(count) for count in (1, 2)}

        def by(count):
            if not request.param:
                monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{count}"))
            return act(count, **asked[count])

        ways = lambda: by(1), lambda: by(2)
        return compare("scale", f"{case}{request.param}", "one worker", *ways, lambda a, b: a != b, repeat=1) > PAYS

    return compared


def test_a_sweep(quick, pays, tmp_path, monkeypatch):
    for name in ("notebooks/00_welcome.ipynb", "tests/expected.yml"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)  # a checkout, so that the results lie where some workers do not see them
    path, settings = runs.notebooks(["00"]), [{"SEED": seed} for seed in range(1, 5 if quick else 9)]
    runs.execute(path, output=tmp_path / "first")  # what all need is rendered and encoded

    def execute(count, **options):
        done = runs.execute(path, fresh=True, sweep=settings, **options)
        assert all(result.status == "ok" for result in done), done
        found = [json.loads((result.folder / "00_welcome.json").read_text()) | {"seconds": 0} for result in done]
        return found, [figure.read_bytes() for result in done for figure in sorted(result.folder.glob("figures/*"))]

    assert pays(f"{len(settings)} runs of 00", execute)


def test_explanations(quick, pays, command, tmp_path):
    photos = data.load("synthetic").table.query("split == 'test'")[: 16 if quick else 64]
    csv = tmp_path / "photos.csv"
    photos[["image", "label"]].assign(split=["train", "test"] * (len(photos) // 2)).to_csv(csv, index=False)
    code, _, err = command("train", "--root", csv, "--frozen", "--output", "model.safetensors")
    assert code == 0, err

    def explain(count, **options):
        folder = tmp_path / f"by_{count}"
        done = explain_split(Path("model.safetensors"), "folder", csv, "train+test", folder, Options(), **options)
        assert done == (len(photos), 0, [])
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert pays(f"{len(photos)} photos explained", explain)
