"""Execute notebooks through papermill: in parallel, each in a process of its own, resumable.

A failed notebook is kept and reported while the others go on. A notebook whose record is finished and whose
sources, parameters and data set are unchanged is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailkit.config import UsageError, data_root, pick
from retailkit.runs.record import home, read_record, run_dir, write_record

SHARED = ("PROFILE", "DATASET", "ROOT", "SEED")
LAST = "90"  # reads the records of all others
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Result:
    """How one notebook ended.

    Attributes:
        notebook: its name.
        status: `ok`, `failed`, or `kept` where an earlier result still holds.
        seconds: wall time of this call.
        error: the cell and the last line of its error, where it failed.
    """

    notebook: str
    status: str
    seconds: float
    error: str = ""


def notebooks(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Return notebook files by name (`20_training`, or `20` for short); none named means all.

    Raises:
        UsageError: no such notebook; the message gives the nearest.
    """
    folder = folder or home() / "notebooks"
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    short = {stem[:2]: stem for stem in found}
    chosen = [short.get(n, n.removesuffix(".ipynb")) for n in names] or list(found)
    return [found[pick(found, name, "notebook")] for name in chosen]


def parameters(notebook: Path) -> dict[str, dict[str, Any]]:
    """Return what the parameters cell of a notebook offers: name -> `default`, `help`."""
    import papermill

    inferred = papermill.inspect_notebook(str(notebook))
    return {name: {"default": p["default"], "help": p["help"]} for name, p in inferred.items()}


def execute(
    notebooks: Sequence[Path],
    profile: str = "fast",
    dataset: str = "synthetic",
    root: str | Path | None = None,
    extra: dict[str, Any] | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    prepare: Callable[[], None] | None = None,
    output: Path | None = None,
    timeout: int = 1800,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Execute notebooks and leave executed copies, records and figures in one folder.

    Args:
        notebooks: files; see the function `notebooks`.
        profile: value of `PROFILE`.
        dataset: value of `DATASET`.
        root: value of `ROOT`; made absolute, since notebooks run in their own folder.
        extra: further parameters.
        jobs: notebooks at a time; None takes the number of cores, at most 4.
        fresh: run again what is done already.
        prepare: called once before the first notebook that has to run.
        output: folder of the results; None takes `papermill_runs/latest/<profile>-<dataset>`.
        timeout: seconds one cell may take.
        say: is told each event in a line.

    Returns:
        One result a notebook, in their order.

    Raises:
        UsageError: a parameter that a notebook does not have; nothing has run then.
    """
    given = dict(extra or {}) | {"PROFILE": profile, "DATASET": dataset}
    if root:
        given["ROOT"] = str(Path(root).resolve())
    for path in notebooks:
        _check_parameters(path, given)
    output = (output or run_dir(profile, dataset)).resolve()
    output.mkdir(parents=True, exist_ok=True)
    jobs = max(1, jobs or min(os.cpu_count() or 1, 4))
    batch = [_Job(path, output, given, timeout, max(1, (os.cpu_count() or 1) // jobs)) for path in notebooks]
    to_do = [job for job in batch if fresh or not job.holds()]
    for job in batch:
        if job not in to_do:
            say(f"{job.name}: kept, nothing has changed since (use --fresh to run it again)")
    if to_do and prepare:
        started = time.monotonic()
        prepare()
        say(f"prepared in {time.monotonic() - started:.0f} s")
    _run_all(to_do, jobs, say)
    return [job.result or Result(job.name, "kept", 0.0) for job in batch]


def _check_parameters(path: Path, given: dict[str, Any]) -> None:
    known = parameters(path)
    for name in given:
        if name not in SHARED or name in ("PROFILE", "DATASET"):
            pick(known, name, f"parameter of {path.stem}")


class _Job:
    """One notebook on its way through a process of its own."""

    def __init__(self, path: Path, output: Path, given: dict[str, Any], timeout: int, threads: int) -> None:
        self.path, self.name, self.output, self.given = path, path.stem, output, given
        self.timeout, self.threads = timeout, threads
        self.key = _key(path, given)
        self.process: subprocess.Popen | None = None
        self.result: Result | None = None
        self.started = 0.0

    @property
    def record_path(self) -> Path:
        return self.output / f"{self.name}.json"

    def holds(self) -> bool:
        """True where an earlier run of the very same sources and parameters has finished."""
        record = read_record(self.record_path)
        whole = record is not None and record["status"] == "ok" and record["key"] == self.key
        return whole and self.name[:2] != LAST and (self.output / f"{self.name}.ipynb").is_file()

    def start(self) -> None:
        """Start papermill in a new process group, so that its kernel can be ended with it."""
        self.started = time.monotonic()
        order = {"input": str(self.path), "output": str(self.output / self.path.name), "parameters": self.given}
        environment = os.environ | {
            "RETAILKIT_RUN_DIR": str(self.output),
            "RETAILKIT_RUN_KEY": self.key,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONHASHSEED": "0",
            "TQDM_MININTERVAL": "10",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        command = [sys.executable, "-m", "retailkit.runs.papermill", json.dumps(order | {"timeout": self.timeout})]
        log = open(self.output / f"{self.name}.log", "w", encoding="utf-8")  # noqa: SIM115 (closed with the child)
        self.process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        log.close()

    def poll(self) -> bool:
        """Return True once the process has ended; `result` says how."""
        if self.process.poll() is None:
            return False
        seconds, log = time.monotonic() - self.started, self.output / f"{self.name}.log"
        record = read_record(self.record_path) or {}
        if self.process.returncode == 0 and record.get("status") == "ok" and record.get("key") == self.key:
            log.unlink(missing_ok=True)
            self.result = Result(self.name, "ok", seconds)
        else:
            error = _last_line(log) or "the notebook never called run.finish()"
            if record:
                write_record(self.record_path, record | {"status": "failed", "error": error})
            self.result = Result(self.name, "failed", seconds, error)
        return True

    def kill(self) -> None:
        """End the process and its kernel."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


def _run_all(to_do: list[_Job], jobs: int, say: Callable[[str], None]) -> None:
    waiting, running = list(to_do), []
    restore = signal.signal(signal.SIGTERM, _interrupt) if _main_thread() else None
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not (waiting[0].name[:2] == LAST and running):
                job = waiting.pop(0)
                job.start()
                running.append(job)
                say(f"{job.name}: running")
            for job in [j for j in running if j.poll()]:
                running.remove(job)
                r = job.result
                say(f"{r.notebook}: {r.status} in {r.seconds:.0f} s" + (f" ({r.error})" if r.error else ""))
            time.sleep(0.1)
    finally:
        for job in running:
            job.kill()
        if restore is not None:
            signal.signal(signal.SIGTERM, restore)


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _last_line(log: Path) -> str:
    lines = [COLOUR_CODES.sub("", line).strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:400] if log.is_file() else ""


def _key(path: Path, given: dict[str, Any]) -> str:
    """Hash what decides a result: the notebook, its parameters, our sources, and the data set's tables."""
    digest = hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode())
    digest.update(path.read_bytes())
    package = Path(__file__).parents[1]
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    root = Path(given.get("ROOT") or data_root(given["DATASET"]))
    for listing in sorted(root.glob("*.txt")) + sorted(root.glob("*.csv")) if root.is_dir() else []:
        digest.update(f"{listing.name} {listing.stat().st_size} {listing.stat().st_mtime_ns}".encode())
    return digest.hexdigest()[:24]


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; values are YAML (`3`, `true`, `text`).

    Raises:
        UsageError: a pair without `=`.
    """
    import yaml

    read = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"parameter {pair!r} has no value; write NAME=VALUE")
        read[name.strip()] = yaml.safe_load(value)
    return read
