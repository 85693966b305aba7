"""The record of one run of a notebook: metrics, figures, tables, what was skipped, and on what machine.

A record is one JSON file. Its status is `running` until `Run.finish`, so that an interrupted run can never be
taken for a result.
"""

from __future__ import annotations

import inspect
import io
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from retailkit.cache import RESUMED, digest, open_file, replacing, to_json, versions
from retailkit.config import UserError, device, home, pick
from retailkit.runs.expect import check_record, expectations

FIGURE_BYTES = 120_000
BETTER = ("higher", "lower", "none")
FIELDS = {"notebook": str, "profile": str, "dataset": str, "status": str, "seconds": (int, float), "metrics": dict,
          "figures": list, "tables": dict, "skipped": dict}  # fmt: skip


def run_dir(profile: str, dataset: str, changed: Mapping[str, Any] | None = None) -> Path:
    """Return the folder of the latest run of a profile on a data set, or the one that the runner names.

    A run with `changed` parameters has a folder of its own, which names them, so that it never replaces the other.
    """
    if given := os.environ.get("RETAILKIT_RUN_DIR"):
        return Path(given)
    parts = [f"{profile}-{dataset}", *(f"{name}={value}" for name, value in sorted((changed or {}).items()))]
    name = re.sub(r"[^\w.,=+-]", "_", ",".join(parts))
    if len(name.encode()) > 150 or name != ",".join(parts):
        name = f"{name[:60]},{digest(changed)[:8]}"
    return home() / "papermill_runs" / "latest" / name


def start(notebook: str) -> Run:
    """Begin the record of the notebook that calls this (`20_training`), with the values of its parameters.

    Parameters are the caller's global variables with an upper-case name and a plain value (a number, a string or a
    bool), so call it right after the parameters cell.
    """
    names = inspect.currentframe().f_back.f_globals
    plain = bool | int | float | str
    return Run(notebook, {k: value for k, value in names.items() if k.isupper() and isinstance(value, plain)})


class Run:
    """What one run of a notebook leaves behind in `folder`; notebooks make one with `start`."""

    def __init__(self, notebook: str, parameters: dict[str, Any]) -> None:
        profile, dataset = parameters.get("PROFILE", "fast"), parameters.get("DATASET", "synthetic")
        self.folder = run_dir(profile, dataset)
        self._started = time.monotonic()
        self.record: dict[str, Any] = {
            "notebook": notebook,
            "profile": profile,
            "dataset": dataset,
            # A root is a path of one machine: the data set's name says enough.
            "parameters": {k: v for k, v in parameters.items() if k != "ROOT"},
            "status": "running",
            "metrics": {},
            "figures": [],
            "tables": {},
            "skipped": {},
            "device": device(),
            "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "versions": versions() | {"python": platform.python_version()},
            "git": _commit(),
            "data": os.environ.get("RETAILKIT_RUN_DATA", ""),
            "key": os.environ.get("RETAILKIT_RUN_KEY", ""),
        }
        self._write()

    def metric(
        self,
        name: str,
        value: float,
        n: int | None = None,
        chance: float | None = None,
        better: str = "higher",
        interval: Sequence[float] | None = None,
        unit: str = "",
    ) -> None:
        """Record a number.

        Args:
            name: snake_case.
            value: a fraction, never a percentage.
            n: images (or words, ...) behind it.
            chance: what knowing nothing would give.
            better: `higher`, `lower`, or `none` for plain facts.
            interval: of 95 %, low and high.
            unit: of what is no fraction ("s", "px"); plain facts (`better="none"`) need none.

        Raises:
            ValueError: not finite, or not a fraction.
        """
        pick(BETTER, better, f"direction of metric {name!r}")
        if not math.isfinite(float(value)):
            raise ValueError(f"metric {name!r} is {value}; record only finite numbers, or skip with a reason")
        if not unit and better != "none" and abs(value) > 1:
            raise ValueError(f"metric {name!r} is {value:g}; record fractions, never percentages, or name its unit")
        entry = {"value": float(value), "better": better} | ({"unit": unit} if unit else {})
        entry |= {} if n is None else {"n": int(n)}
        entry |= {} if chance is None else {"chance": float(chance)}
        entry |= {} if interval is None else {"interval": [float(end) for end in interval]}
        self.record["metrics"][name] = entry
        self._write()

    def figure(self, name: str, figure: Any, alt: str = "", photos: bool = False) -> None:
        """Keep a matplotlib figure as a small file, close it and show that file.

        `alt` says what it shows to those who do not see it. `photos` is True where it shows photos of others, which
        are never committed.
        """
        import matplotlib.pyplot as plt
        from IPython.display import Image as Shown
        from IPython.display import display

        data, suffix = compress(figure)
        plt.close(figure)
        path = self.folder / "figures" / f"{self.record['notebook']}__{name}.{suffix}"
        with replacing(path) as draft:
            draft.write_bytes(data)
        entry = {"file": path.name, "alt": alt, "photos": bool(photos)}
        self.record["figures"] = [f for f in self.record["figures"] if f["file"] != path.name] + [entry]
        self._write()
        display(Shown(data=data, format=suffix.replace("jpg", "jpeg"), alt=alt))

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Keep a small table with the record."""
        self.record["tables"][name] = json.loads(frame.to_json(orient="split", index=False))
        self._write()

    def skip(self, section: str, reason: str) -> None:
        """Record and print that a section was left out, and why."""
        self.record["skipped"][section] = reason
        print(f"skipped: {section}: {reason}")
        self._write()

    def finish(self) -> None:
        """Close the record with status `ok`; say what is in it, and which expectations it does not meet."""
        self.record["status"] = "ok"
        self._write()
        counts = f"{len(self.record['metrics'])} metrics, {len(self.record['figures'])} figures"
        run = f"{self.record['profile']}-{self.record['dataset']}"
        expected = expectations().get(run, {}).get(self.record["notebook"], {})
        failures = check_record(self.record, expected)
        told = f"expectations of {run} with default parameters: {len(expected)}; not met: {len(failures)}"
        print(f"{counts}, {self.record['seconds']:.0f} s", told, *failures, sep="\n")

    def _write(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self._started, 2)
        if RESUMED:
            self.record["resumed"] = list(RESUMED)
        write_record(self.folder / f"{self.record['notebook']}.json", self.record)


def compress(figure: Any) -> tuple[bytes, str]:
    """Return a figure in about `FIGURE_BYTES` and its suffix: a PNG of 128 colours if that does, else a JPEG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    image = Image.open(stream).convert("RGB")
    flat = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(flat, "png", optimize=True)
    if flat.tell() <= FIGURE_BYTES // 2:  # a plot; photos would show bands of colour
        return flat.getvalue(), "png"
    for quality in (85, 75, 65, 50, 35):
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=quality, optimize=True)
        if stream.tell() <= FIGURE_BYTES:
            break
    return stream.getvalue(), "jpg"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record in one step."""
    with replacing(path) as draft:
        draft.write_text(to_json(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any] | None:
    """Return a record, or None where there is none, or a damaged one: cut off, or without what each record has."""
    try:
        with open_file(path, limit=1 << 26) as file:
            record = json.loads(file.read())
        whole = all(isinstance(record[name], kind) for name, kind in FIELDS.items())
        whole = whole and all(map(_is_metric, record["metrics"].values()))
        whole = whole and all({"columns", "data"} <= set(table) for table in record["tables"].values())
        return record if whole and all({"file", "alt", "photos"} <= set(f) for f in record["figures"]) else None
    # ValueError is also what `open_file` raises.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def read_records(folder: Path) -> dict[str, dict[str, Any] | None]:
    """Return the records in a folder by notebook; see `read_record`."""
    return {path.stem: read_record(path) for path in sorted(folder.glob("[0-9][0-9]_*.json"))}


def _is_metric(metric: dict[str, Any]) -> bool:
    low, high = metric.get("interval", (0, 0))
    return all(map(math.isfinite, (metric["value"], low, high))) and metric["better"] in BETTER


def is_notebook(path: Path) -> bool:
    """Say whether a file is a whole notebook, and not cut off."""
    import nbformat

    try:
        nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises what it likes
        return False
    return True


def _commit() -> str:
    """Return the short commit of the checkout, with `+` where files have changed since; "" outside git."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=home(), capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, UserError, subprocess.TimeoutExpired):
        return ""
