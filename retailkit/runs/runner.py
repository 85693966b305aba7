"""Execute notebooks with papermill, several at a time; what has not changed since its last run is not run again."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from retailkit import cluster
from retailkit.cache import check_output, digest, file_identity, package_identity
from retailkit.config import UsageError, UserError, data_root, home, pick
from retailkit.runs.parameters import changed, typed
from retailkit.runs.record import is_notebook, read_record, run_dir, write_record

LAST = "90"  # reads the records of all others
CELL_SECONDS = {"fast": 1800, "full": 6 * 3600}
ENVIRONMENT = {"MPLBACKEND": "agg", "PYTHONHASHSEED": "0", "TQDM_MININTERVAL": "10",
               "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How one notebook ended: `ok`, `failed` (with its `error`), or `kept` where an earlier result still holds."""

    notebook: str
    status: str
    seconds: float
    error: str = ""
    folder: Path | None = None  # of its record
    setting: Mapping[str, Any] = field(default_factory=dict)  # of a sweep: the swept parameters and their values

    @property
    def name(self) -> str:
        """Return the name of the notebook, and in a sweep the values of the swept parameters."""
        return " ".join([self.notebook, *(f"{name}={value}" for name, value in self.setting.items())])

    def __str__(self) -> str:
        if self.status == "kept":
            return f"{self.name}: kept, nothing has changed since (use --fresh to run it again)"
        return f"{self.name}: {self.status} in {self.seconds:.0f} s" + (f" ({self.error})" if self.error else "")


@dataclass(frozen=True)
class Job:
    """What a process has to know to execute one notebook."""

    notebook: Path
    output: Path  # folder of the results
    parameters: dict[str, Any]
    timeout: int  # seconds that one cell may take
    data: str  # see `data_identity`
    key: str  # changes with everything that decides the result
    setting: Mapping[str, Any]  # see `Result`

    def inputs(self) -> list[Path]:
        """Return the files that it reads: the notebook, what it must show, and the data set."""
        given = Path(self.parameters.get("ROOT") or data_root(self.parameters["DATASET"]))
        expected = self.notebook.parents[1] / "tests" / "expected.yml"
        files = data_files(given.resolve(), self.parameters["DATASET"])
        return [self.notebook, *([expected] if expected.is_file() else []), *files]

    def moved(self, place: Callable[[Path], Path], output: Path) -> Job:
        """Return the same job for a disk where each input lies at `place(path)`; see `cluster.Portable`."""
        own = {"output": output, "notebook": place(self.notebook)}
        if self.data:
            given = Path(self.parameters.get("ROOT") or data_root(self.parameters["DATASET"]))
            own["parameters"] = self.parameters | {"ROOT": str(place(given.resolve()))}
        return replace(self, **own)

    def result(self, status: str, seconds: float = 0.0, error: str = "") -> Result:
        """Return how it ended."""
        return Result(self.name, status, seconds, error, self.output, self.setting)

    @property
    def name(self) -> str:
        """Return the name of the notebook."""
        return self.notebook.stem

    @property
    def record(self) -> Path:
        """Return the file of its record."""
        return self.output / f"{self.name}.json"

    def is_done(self) -> bool:
        """Return True where an earlier run of the very same sources and parameters has finished."""
        record = read_record(self.record) or {}
        same = record.get("status") == "ok" and record.get("key") == self.key
        return same and self.name[:2] != LAST and is_notebook(self.output / f"{self.name}.ipynb")

    def usual_seconds(self) -> float:
        """Return how long it took the last time, here or in the committed run."""
        committed = home() / "papermill_runs" / self.output.name.split(",")[0] / self.record.name
        return max((read_record(path) or {}).get("seconds", 0.0) for path in (self.record, committed))


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """Return notebook files by name (`20_training`, or `20` for short); none named means all."""
    found = {path.stem: path for path in sorted((home() / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    short = {stem[:2]: stem for stem in found}
    chosen = [short.get(n, n.removesuffix(".ipynb")) for n in names] or list(found)
    return [found[pick(found, name, "notebook")] for name in chosen]


def execute(
    notebooks: Sequence[Path],
    profile: str = "fast",
    dataset: str = "synthetic",
    root: str | Path | None = None,
    extra: dict[str, Any] | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    prepare: Callable[[str, str, str | Path | None], None] | None = None,
    output: Path | None = None,
    timeout: int | None = None,
    sweep: Sequence[Mapping[str, Any]] = ({},),
    scheduler: str = "",
) -> list[Result]:
    """Execute notebooks and leave executed copies, records and figures in one folder; prints a line per event.

    Args:
        notebooks: files; see the function `notebooks`.
        profile: value of `PROFILE`.
        dataset: value of `DATASET`.
        root: value of `ROOT`.
        extra: further parameters; texts are read as the types of the defaults.
        jobs: notebooks at a time; None takes the number of cores, at most 4.
        fresh: run again what is done already.
        prepare: called with profile, dataset and root, once, before several notebooks that have to run; one alone makes
            what it needs itself.
        output: folder of the results; None takes that of `run_dir`, which names the changed parameters.
        timeout: seconds one cell may take; None takes half an hour in `fast` and six hours in `full`.
        sweep: settings of further parameters; all notebooks run once with each, in its own folder of `run_dir`.
        scheduler: address of a dask scheduler, whose workers then take the place of `jobs` processes.

    Returns:
        One result per notebook, in their order, for each setting.

    Raises:
        UsageError: a parameter that a notebook does not have, or a value of another type; nothing has run then.
    """
    shared = {"PROFILE": profile, "DATASET": dataset} | ({"ROOT": str(Path(root).resolve())} if root else {})
    timeout = timeout or CELL_SECONDS.get(profile, max(CELL_SECONDS.values()))
    batch = _planned(notebooks, shared, extra or {}, sweep, output, timeout)
    for folder in {job.output for job in batch}:
        check_output(folder / "index.html", force=True)
    results = {job.record: job.result("kept") for job in batch if job.is_done() and not fresh}
    for result in results.values():
        tqdm.write(str(result))
    waiting = [job for job in batch if job.record not in results]
    first = (prepare, profile, dataset, root) if prepare and _several(waiting) else None
    for job, result in _run_all(waiting, jobs, first, scheduler):
        tqdm.write(str(result))
        results[job.record] = result
    return [results[job.record] for job in batch]


def _planned(
    notebooks: Sequence[Path],
    shared: dict[str, Any],
    extra: dict[str, Any],
    sweep: Sequence[Mapping[str, Any]],
    output: Path | None,
    timeout: int,
) -> list[Job]:
    """Return what has to be executed; all values are checked first."""
    plan, folders = [], set()
    for setting in sweep:
        given = extra | setting
        # A value that is the default decides nothing: the run is the same as one without it.
        own = [typed(path, shared) | changed([path], given) for path in notebooks]
        values = {name: typed(path, setting)[name] for path in notebooks for name in setting}
        folder = (output or run_dir(shared["PROFILE"], shared["DATASET"], changed(notebooks, given))).resolve()
        if folder in folders:
            raise UsageError(f"{folder.name} would run twice; give each value of a sweep once, and no --output")
        folders.add(folder)
        plan += [(path, folder, values, settings) for path, settings in zip(notebooks, own, strict=True)]
    data = data_identity(shared)
    decisive = data, package_identity()
    return [
        Job(path, folder, own, timeout, data, digest(path.read_bytes(), own, *decisive), values)
        for path, folder, values, own in plan
    ]


def _several(waiting: list[Job]) -> bool:
    return sum(job.name[:2] != LAST for job in waiting) > 1


def _run_all(
    waiting: list[Job], jobs: int | None, first: tuple[Any, ...] | None, scheduler: str
) -> Iterator[tuple[Job, Result]]:
    """Yield results as they come: the longest notebook starts first, and `LAST` when all others are done."""
    if not waiting:
        return
    if first and not scheduler:
        _prepare(first)
    jobs = max(1, min(jobs or min(os.cpu_count() or 1, 4), len(waiting)))
    shared = waiting[0].output
    shared.mkdir(parents=True, exist_ok=True)
    with cluster.workers(jobs, scheduler, shared) as pool:
        if first and scheduler and pool.share_disk():
            for _, failed in pool.as_done(_prepare, [first], "prepare"):
                if failed:
                    raise failed
        last = [job for job in waiting if job.name[:2] == LAST]
        yield from _results(pool, [job for job in waiting if job not in last])
        with cluster.workers(1) if scheduler and last else nullcontext(pool) as near:  # the results of all lie here
            yield from _results(near, last)


def _results(pool: cluster.Workers, group: list[Job]) -> Iterator[tuple[Job, Result]]:
    group.sort(key=Job.usual_seconds, reverse=True)
    for job, found in pool.as_done(_execute, group, "notebooks"):
        if not isinstance(found, Result | UserError):
            raise found
        done = isinstance(found, Result)  # perhaps in a folder of a worker
        yield job, replace(found, folder=job.output) if done else job.result("failed", error=str(found))


def _prepare(first: tuple[Any, ...]) -> None:
    """Make once what all notebooks need."""
    started, (prepare, *where) = time.monotonic(), first
    prepare(*where)
    tqdm.write(f"prepared in {time.monotonic() - started:.0f} s")


def _execute(job: Job) -> Result:
    """Execute one notebook in this process."""
    os.environ |= {"RETAILKIT_RUN_DIR": str(job.output), "RETAILKIT_RUN_KEY": job.key, "RETAILKIT_RUN_DATA": job.data}
    os.environ |= ENVIRONMENT  # the kernel inherits it
    started, before = time.monotonic(), read_record(job.record)
    # An earlier record goes, so that a notebook that fails before `runs.start` leaves a trace as well.
    facts = {"notebook": job.name, "profile": job.parameters["PROFILE"], "dataset": job.parameters["DATASET"]}
    facts |= {"status": "running", "key": job.key, "seconds": 0.0}
    facts |= {"metrics": {}, "figures": [], "tables": {}, "skipped": {}}
    write_record(job.record, facts)
    error = _papermill(job)
    seconds, record = time.monotonic() - started, read_record(job.record) or facts
    if before and before["status"] != "ok" and before.get("key") == job.key:
        earlier = f"an earlier run ended as {before['status']} after {before['seconds']:.0f} s"
        record |= {"resumed": [earlier, *record.get("resumed", [])]}
        write_record(job.record, record)
    if not error and not (record.get("status") == "ok" and record.get("key") == job.key):
        error = "the notebook never called run.finish()"
    if error:
        write_record(job.record, record | {"status": "failed", "error": error, "seconds": round(seconds, 2)})
    return job.result("failed" if error else "ok", seconds, error)


def _papermill(job: Job) -> str:
    """Execute a notebook into the output folder; return "", or what went wrong in one line."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        with _kernel_config() as config:
            papermill.execute_notebook(
                str(job.notebook),
                str(job.output / job.notebook.name),
                parameters=job.parameters,
                kernel_name="python3",
                cwd=str(job.notebook.parent),
                execution_timeout=job.timeout,
                start_timeout=120,
                config=config,
                progress_bar=False,
            )
    except PapermillExecutionError as error:
        told = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    except TimeoutError as error:
        slow = type(error).__name__ == "CellTimeoutError"  # else messages of the kernel came too late
        told = f"a cell took more than {job.timeout} seconds" if slow else "the machine is too busy for the kernel"
        told += "; run it again, what is trained or encoded by now is kept"
        told += ", or give it longer: --cell-seconds" if slow else ""
    except Exception as error:  # whatever fails here fails this notebook only
        told = f"{type(error).__name__}: {error}"
    else:
        return ""
    return " ".join(told.split())[:400]


@contextmanager
def _kernel_config() -> Iterator[Any]:
    """Yield a configuration by which the kernel is this very Python, reached through files where that is possible.

    Kernels that start together may draw the same TCP port, and other programs may have installed another `python3`.
    """
    from traitlets.config import Config

    # The path of a socket has about 100 bytes.
    long = len(os.fsencode(tempfile.gettempdir())) > 60 and os.access("/tmp", os.W_OK)
    with tempfile.TemporaryDirectory(prefix="retailkit", dir="/tmp" if long else None) as folder:
        spec = Path(folder, "kernels", "python3", "kernel.json")
        spec.parent.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec.write_text(json.dumps({"argv": command, "display_name": "Python 3", "language": "python"}))
        before = os.environ.get("JUPYTER_PATH", "")
        os.environ["JUPYTER_PATH"] = f"{folder}{os.pathsep}{before}" if before else folder
        reached = {"transport": "ipc", "ip": str(Path(folder, "kernel"))} if os.name == "posix" else {}
        try:
            yield Config({"KernelManager": reached})
        finally:
            os.environ["JUPYTER_PATH"] = before


def data_identity(given: dict[str, Any]) -> str:
    """Hash the files of the data set behind `DATASET` and `ROOT`, or a CSV and the files that it names.

    Empty for a data set that is made at first use: our sources decide what is in it.
    """
    root = Path(given.get("ROOT") or data_root(given["DATASET"]))
    files = data_files(root, given["DATASET"])
    return digest([[os.path.relpath(path, root), file_identity(path)] for path in files]) if files else ""


def data_files(root: Path, dataset: str) -> list[Path]:
    """Return the files of a data set below its folder, or of a CSV; none if it is made at first use."""
    if not root.exists() or (root.is_dir() and dataset == "synthetic"):
        return []
    from retailkit.data.folder import files_below, files_in_csv

    files = files_below(root, []) if root.is_dir() else [root, *files_in_csv(root)]
    return sorted(path for path in files if path.is_file())
