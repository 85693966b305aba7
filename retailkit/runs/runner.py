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
    setting: Mapping[str, Any]  # see `Result`
    data: str = ""  # see `data_identity`
    key: str = ""  # changes with everything that decides the result

    @property
    def name(self) -> str:
        """Return the name of the notebook."""
        return self.notebook.stem

    @property
    def record(self) -> Path:
        """Return the file of its record."""
        return self.output / f"{self.name}.json"

    @property
    def is_last(self) -> bool:
        """Return True for a notebook that reads the records of all others: it runs after them, and every time."""
        return self.name.startswith(LAST)

    def inputs(self) -> list[Path]:
        """Return the files that it reads: the notebook, what it must show, and the data set."""
        expected = self.notebook.parents[1] / "tests" / "expected.yml"
        return [self.notebook, *([expected] if expected.is_file() else []), *data_files(self.parameters)[1]]

    def moved(self, place: Callable[[Path], Path], output: Path) -> Job:
        """Return the same job for a disk where each input lies at `place(path)`; see `cluster.Portable`."""
        root = {"ROOT": str(place(data_files(self.parameters)[0]))} if self.data else {}
        return replace(self, output=output, notebook=place(self.notebook), parameters=self.parameters | root)

    def result(self, status: str, seconds: float = 0.0, error: str = "") -> Result:
        """Return how it ended."""
        return Result(self.name, status, seconds, error, self.output, self.setting)

    def is_done(self) -> bool:
        """Return True where an earlier run of the very same sources and parameters has finished."""
        record = read_record(self.record) or {}
        same = record.get("status") == "ok" and record.get("key") == self.key
        return same and not self.is_last and is_notebook(self.output / f"{self.name}.ipynb")

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
    prepare: Callable[[], None] | None = None,
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
        prepare: called once before several notebooks that have to run; one alone makes what it needs itself.
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
    for job, result in _run_all(waiting, jobs, prepare, scheduler):
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
    """Return what has to be executed; all values are checked before the data set is read."""
    batch: list[Job] = []
    for setting in sweep:
        given = extra | setting
        folder = (output or run_dir(shared["PROFILE"], shared["DATASET"], changed(notebooks, given))).resolve()
        if any(job.output == folder for job in batch):
            raise UsageError(f"{folder.name} would run twice; give each value of a sweep once")
        for path in notebooks:
            # A value that is the default decides nothing: the run is the same as one without it.
            own = typed(path, shared) | changed([path], given)
            batch.append(Job(path, folder, own, timeout, typed(path, setting)))
    data, package = data_identity(shared), package_identity()
    return [
        replace(job, data=data, key=digest(job.notebook.read_bytes(), job.parameters, data, package)) for job in batch
    ]


def _run_all(
    waiting: list[Job], jobs: int | None, prepare: Callable[[], None] | None, scheduler: str
) -> Iterator[tuple[Job, Result]]:
    """Yield results as they come: the longest notebook starts first, and `LAST` when all others are done."""
    if not waiting:
        return
    last = [job for job in waiting if job.is_last]
    others = [job for job in waiting if not job.is_last]
    prepare = prepare if len(others) > 1 else None
    if prepare and not scheduler:
        _prepare(prepare)
    jobs = max(1, min(jobs or min(os.cpu_count() or 1, 4), len(waiting)))
    shared = waiting[0].output
    shared.mkdir(parents=True, exist_ok=True)
    with cluster.workers(jobs, scheduler, shared) as pool:
        if prepare and scheduler and pool.share_disk():
            for _, failed in pool.as_done(_prepare, [prepare], "prepare"):
                if failed:
                    raise failed
        yield from _results(pool, others)
        with cluster.workers(1) if scheduler and last else nullcontext(pool) as near:  # the results of all lie here
            yield from _results(near, last)


def _results(pool: cluster.Workers, group: list[Job]) -> Iterator[tuple[Job, Result]]:
    group.sort(key=Job.usual_seconds, reverse=True)
    for job, ended in pool.as_done(_execute, group, "notebooks"):
        if isinstance(ended, UserError):  # such as a process that was killed
            ended = 0.0, str(ended)
        elif isinstance(ended, Exception):
            raise ended
        seconds, error = ended
        yield job, job.result("failed" if error else "ok", seconds, error)


def _prepare(prepare: Callable[[], None]) -> None:
    """Make once what all notebooks need."""
    started = time.monotonic()
    prepare()
    tqdm.write(f"prepared in {time.monotonic() - started:.0f} s")


def _execute(job: Job) -> tuple[float, str]:
    """Execute one notebook in this process; return the seconds that it took, and what went wrong."""
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
    return seconds, error


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


def data_files(parameters: Mapping[str, Any]) -> tuple[Path, list[Path]]:
    """Return where the data set behind `DATASET` and `ROOT` lies, and its files: those of a folder or of a CSV.

    A data set that is made at first use has none.
    """
    root = Path(parameters.get("ROOT") or data_root(parameters["DATASET"])).resolve()
    if not root.exists() or (root.is_dir() and parameters["DATASET"] == "synthetic"):
        return root, []
    from retailkit.data.folder import files_below, files_in_csv

    files = files_below(root, []) if root.is_dir() else [root, *files_in_csv(root)]
    return root, sorted(path for path in files if path.is_file())


def data_identity(parameters: Mapping[str, Any]) -> str:
    """Hash the files of a data set; "" where it has none, since our sources decide what is in it."""
    root, files = data_files(parameters)
    return digest([[os.path.relpath(path, root), file_identity(path)] for path in files]) if files else ""
