"""How reading a table grows with its rows, in time and memory, and against a plain loop over its rows.

`python tests/benchmarks/test_table.py docs/growth_of_tables.csv` measures the numbers of `docs/scale.md`.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retailkit.data import folder

CASES = [(10**3, 10**2), (10**4, 10**2), (10**5, 10**2), (10**6, 10**2), (10**3, 10**3), (10**4, 10**4), (10**5, 10**5)]
SHOWN = 200  # samples that are read
MEASURE = f"""
import json, resource, sys, time, warnings
from retailkit import data
warnings.simplefilter("ignore")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform == "linux" else 1e6)
before, times = peak(), [time.process_time()]
products = data.load("folder", sys.argv[1])
times.append(time.process_time())
split = products.split("train", 32)
assert len(split.labels) == len(split) > len(products) / 2
times.append(time.process_time())
for row in range(0, len(split), max(1, len(split) // {SHOWN})):
    split[row]
times.append(time.process_time())
load, divide, iterate = (round(b - a, 3) for a, b in zip(times, times[1:]))
print(json.dumps(dict(load=load, split=divide, sample=round(iterate / {SHOWN}, 5), megabytes=round(peak() - before))))
"""


def write(place: Path, rows: int, files: int) -> Path:
    """Write a table whose rows name `files` images in folders of a thousand; 1,000 classes, groups of four rows."""
    rng, names = np.random.default_rng(0), []
    for n in range(files):
        path = place / f"{n // 1000:03d}" / f"{n:06d}.ppm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"P6 8 8 255\n" + rng.bytes(192))
        names.append(path.relative_to(place))
    with open(place / "table.csv", "w") as file:
        file.write("image,label,text,group\n")
        file.writelines(f'{names[n % files]},product {n % 1000},"MILK {n} 3,5 %",g{n // 4}\n' for n in range(rows))
    return place / "table.csv"


def measured(table: Path) -> dict[str, float]:
    """Return seconds of the processor and megabytes, of a process that reads nothing else."""
    done = subprocess.run([sys.executable, "-c", MEASURE, table], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def row_by_row(table: Path) -> list[tuple[str, str]]:
    """Read a table as one would at first: a loop over its rows, which asks for each file."""
    found = []
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = table.parent / row["image"]
            if not path.is_file():
                raise FileNotFoundError(path)
            found.append((str(path), row["label"].strip()))
    return found


@pytest.mark.benchmark
def test_table(tmp_path, compare, quick):
    rows = 10**4 if quick else 10**5
    table = write(tmp_path, rows, rows // 10)

    def ours():
        found = folder.read(table)
        assert not found.faults
        return list(found.rows[["image", "label"]].itertuples(index=False, name=None))

    assert compare("table", f"{rows:,} rows", "a plain loop", lambda: row_by_row(table), ours, repeat=3) > 1


@pytest.mark.benchmark
def test_growth(tmp_path, quick):
    sizes, found = [10**3, 10**4] if quick else [10**4, 10**5], []
    for rows in sizes:
        (tmp_path / str(rows)).mkdir()
        found.append(measured(write(tmp_path / str(rows), rows, 100))["load"])
    exponent = np.log(found[1] / found[0]) / np.log(sizes[1] / sizes[0])
    print(f"\ntable: load grows with the rows to the power of {exponent:.2f}")
    assert exponent < 1.3


if __name__ == "__main__":  # measures all cases and writes them as CSV
    lines = []
    for rows, files in CASES:
        with tempfile.TemporaryDirectory() as place:
            lines.append({"rows": rows, "files": files} | measured(write(Path(place), rows, files)))
        print(lines[-1], flush=True)
        pd.DataFrame(lines).to_csv(sys.argv[1], index=False)
