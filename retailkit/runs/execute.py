"""Execute notebooks through papermill: in parallel, each in a process of its own, resumable.

A failed notebook is kept and reported while the others go on. A notebook whose record is finished and whose
sources, parameters and data set are unchanged is not run again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retailkit.cache import digest, file_identity
from retailkit.config import UsageError, data_root, pick
from retailkit.runs.record import SCHEMA, home, read_record, run_dir, write_record

LAST = "90"  # reads the records of all others
CELL_SECONDS = {"fast": 1800, "full": 6 * 3600}
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")
CELLS_DONE = re.compile(r"^Executing: .*?(\d+)/(\d+) \[")  # papermill's progress bar in the log


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
    timeout: int | None = None,
    say: Callable[[str], None] = print,
    tick: Callable[[str, int, int], None] | None = None,
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
        prepare: called once before several notebooks that have to run; one alone makes what it needs itself.
        output: folder of the results; None takes `papermill_runs/latest/<profile>-<dataset>`.
        timeout: seconds one cell may take; None takes half an hour in `fast` and six hours in `full`.
        say: is told each event in a line.
        tick: is told the name of a running notebook, its cells that are done, and all of them.

    Returns:
        One result a notebook, in their order.

    Raises:
        UsageError: a parameter that a notebook does not have; nothing has run then.
    """
    given = _given(profile, dataset, root, extra or {})
    for path in notebooks:
        _check_parameters(path, given)
    output = (output or run_dir(profile, dataset)).resolve()
    output.mkdir(parents=True, exist_ok=True)
    timeout = timeout or CELL_SECONDS.get(profile, max(CELL_SECONDS.values()))
    data, sources = data_identity(given), _sources_identity()
    batch = [_Job(path, output, given, timeout, data, sources) for path in notebooks]
    to_do = [job for job in batch if fresh or not job.holds()]
    for job in batch:
        if job not in to_do:
            say(f"{job.name}: kept, nothing has changed since (use --fresh to run it again)")
    if prepare and sum(job.name[:2] != LAST for job in to_do) > 1:
        started = time.monotonic()
        prepare()
        say(f"prepared in {time.monotonic() - started:.0f} s")
    cores = os.cpu_count() or 1
    jobs = max(1, min(jobs or min(cores, 4), len(to_do)))
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // jobs))
    _run_all(to_do, jobs, threads, say, tick)
    return [job.result or Result(job.name, "kept", 0.0) for job in batch]


def _given(profile: str, dataset: str, root: str | Path | None, extra: dict[str, Any]) -> dict[str, Any]:
    """Join the parameters of every notebook with the further ones."""
    for name in {"PROFILE", "DATASET", "ROOT"} & extra.keys():
        raise UsageError(
            f"parameter {name}={extra[name]!r}: use --{name.lower()}, so that the results go to their place"
        )
    given = extra | {"PROFILE": profile, "DATASET": dataset}
    return given | {"ROOT": str(Path(root).resolve())} if root else given


def _check_parameters(path: Path, given: dict[str, Any]) -> None:
    known = parameters(path)
    for name in given:
        pick(known, name, f"parameter of {path.stem}")


class _Job:
    """One notebook on its way through a process of its own."""

    def __init__(self, path: Path, output: Path, given: dict[str, Any], timeout: int, data: str, sources: str) -> None:
        self.path, self.name, self.output, self.given = path, path.stem, output, given
        self.timeout, self.data = timeout, data
        self.key = digest(path.read_bytes(), json.dumps(given, sort_keys=True, default=str), data, sources)
        self.process: subprocess.Popen | None = None
        self.result: Result | None = None
        self.started = 0.0

    @property
    def record_path(self) -> Path:
        return self.output / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.output / f"{self.name}.log"

    def holds(self) -> bool:
        """True where an earlier run of the very same sources and parameters has finished."""
        record = read_record(self.record_path)
        whole = record is not None and record.get("status") == "ok" and record.get("key") == self.key
        return whole and self.name[:2] != LAST and (self.output / f"{self.name}.ipynb").is_file()

    def start(self, threads: int) -> None:
        """Start papermill in a session of its own: an interrupt reaches it through `kill`, once."""
        self.started = time.monotonic()
        self._write_blank_record()
        order = {"input": str(self.path), "output": str(self.output / self.path.name), "parameters": self.given}
        environment = os.environ | {
            "RETAILKIT_RUN_DIR": str(self.output),
            "RETAILKIT_RUN_KEY": self.key,
            "RETAILKIT_RUN_DATA": self.data,
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": str(threads),
            # Threads that wait by spinning take seven times as long where another program keeps a core busy.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "PYTHONHASHSEED": "0",
            "TQDM_MININTERVAL": "10",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        # By its path, so that no package is imported but papermill; -P keeps this folder out of the search path.
        child = str(Path(__file__).with_name("papermill.py"))
        command = [sys.executable, "-P", child, json.dumps(order | {"timeout": self.timeout})]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _write_blank_record(self) -> None:
        """Replace an earlier record, so that a notebook that fails before `runs.start` leaves a trace as well."""
        facts = {"schema": SCHEMA, "notebook": self.name, "status": "running", "key": self.key, "seconds": 0.0}
        shared = {"profile": self.given["PROFILE"], "dataset": self.given["DATASET"]}
        write_record(self.record_path, facts | shared | {"metrics": {}, "figures": [], "tables": {}, "skipped": {}})

    def cells_done(self) -> tuple[int, int] | None:
        """Return how many cells are done, of how many."""
        found = [CELLS_DONE.match(line) for line in self.log.read_text(errors="replace").splitlines()[-3:]]
        return next(((int(m[1]), int(m[2])) for m in reversed(found) if m), None)

    def poll(self) -> bool:
        """Return True once the process has ended; `result` says how."""
        if self.process.poll() is None:
            return False
        seconds = time.monotonic() - self.started
        record = read_record(self.record_path) or {}
        if self.process.returncode == 0 and record.get("status") == "ok" and record.get("key") == self.key:
            self.log.unlink(missing_ok=True)
            self.result = Result(self.name, "ok", seconds)
            return True
        error = "the notebook never called run.finish()"
        if self.process.returncode:
            error = _last_line(self.log) or f"the process ended with code {self.process.returncode}"
            if error.startswith("CellTimeoutError"):
                error = (
                    f"a cell took more than {self.timeout} seconds; run it again, what is trained or encoded by now is "
                    "kept, or give it longer: --cell-seconds"
                )
        if record:
            seconds_so_far = {"seconds": round(seconds, 2)}
            write_record(self.record_path, record | {"status": "failed", "error": error} | seconds_so_far)
        self.result = Result(self.name, "failed", seconds, error)
        return True

    def kill(self) -> None:
        """End the process; its kernel ends itself when it finds its parent gone."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


def _run_all(
    to_do: list[_Job], jobs: int, threads: int, say: Callable[[str], None], tick: Callable[[str, int, int], None] | None
) -> None:
    waiting, running = list(to_do), []
    with _interruptible():
        try:
            while waiting or running:
                while waiting and len(running) < jobs and not (waiting[0].name[:2] == LAST and running):
                    job = waiting.pop(0)
                    job.start(threads)
                    running.append(job)
                    say(f"{job.name}: running")
                for job in running:
                    if tick and (done := job.cells_done()):
                        tick(job.name, *done)
                for job in [j for j in running if j.poll()]:
                    running.remove(job)
                    r = job.result
                    say(f"{r.notebook}: {r.status} in {r.seconds:.0f} s" + (f" ({r.error})" if r.error else ""))
                time.sleep(0.1)
        finally:
            for job in running:
                job.kill()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat an end by SIGTERM or a closed terminal like Ctrl-C, so that no child is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, _interrupt) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _last_line(log: Path) -> str:
    lines = [COLOUR_CODES.sub("", line).strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line and not CELLS_DONE.match(line)), "")[:400]


def data_identity(given: dict[str, Any]) -> str:
    """Hash the files of the data set behind `DATASET` and `ROOT`, or a CSV and the files that it names.

    Empty for a data set that is made at first use: our sources decide what is in it.
    """
    root = Path(given.get("ROOT") or data_root(given["DATASET"]))
    if root.is_file():
        from retailkit.data.folder import files_in_csv

        files = [root, *files_in_csv(root)]
    elif given["DATASET"] == "synthetic" or not root.is_dir():
        return ""
    else:
        files = sorted(path for path in root.rglob("*") if path.is_file())
    return digest([[os.path.relpath(path, root), file_identity(path)] for path in files])


def _sources_identity() -> str:
    package = Path(__file__).parents[1]
    return digest([path.read_bytes() for path in sorted(package.rglob("*.py"))])


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; values are YAML (`3`, `true`, `text`), and nothing after `=` is an empty string.

    Raises:
        UsageError: a pair without `=`.
    """
    import yaml

    read = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"parameter {pair!r} has no value; write NAME=VALUE")
        read[name.strip()] = yaml.safe_load(value) if value.strip() else ""
    return read
