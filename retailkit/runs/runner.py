"""Execute notebooks with papermill, several at a time; what has not changed since its last run is not run again."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from retailkit.cache import check_output, digest, file_identity
from retailkit.config import data_root, home, pick, threads
from retailkit.runs.parameters import changed, typed
from retailkit.runs.record import is_notebook, read_record, run_dir, write_record

LAST = "90"  # reads the records of all others
CELL_SECONDS = {"fast": 1800, "full": 6 * 3600}


@dataclass(frozen=True)
class Result:
    """How one notebook ended: `ok`, `failed` (with its `error`), or `kept` where an earlier result still holds."""

    notebook: str
    status: str
    seconds: float
    error: str = ""

    def __str__(self) -> str:
        if self.status == "kept":
            return f"{self.notebook}: kept, nothing has changed since (use --fresh to run it again)"
        return f"{self.notebook}: {self.status} in {self.seconds:.0f} s" + (f" ({self.error})" if self.error else "")


@dataclass(frozen=True)
class Job:
    """What a process has to know to execute one notebook."""

    notebook: Path
    output: Path  # folder of the results
    parameters: dict[str, Any]
    timeout: int  # seconds that one cell may take
    data: str  # see `data_identity`
    key: str  # changes with everything that decides the result

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

    Returns:
        One result per notebook, in their order.

    Raises:
        UsageError: a parameter that a notebook does not have, or a value of another type; nothing has run then.
    """
    shared = {"PROFILE": profile, "DATASET": dataset} | ({"ROOT": str(Path(root).resolve())} if root else {})
    given = [typed(path, (extra or {}) | shared) for path in notebooks]
    output = (output or run_dir(profile, dataset, changed(notebooks, extra or {}))).resolve()
    check_output(output / "index.html", force=True)
    timeout = timeout or CELL_SECONDS.get(profile, max(CELL_SECONDS.values()))
    data, sources = data_identity(shared), _sources_identity()
    keys = [digest(path.read_bytes(), own, data, sources) for path, own in zip(notebooks, given, strict=True)]
    batch = [Job(path, output, own, timeout, data, key) for path, own, key in zip(notebooks, given, keys, strict=True)]
    results = {job.name: Result(job.name, "kept", 0.0) for job in batch if job.is_done() and not fresh}
    for result in results.values():
        tqdm.write(str(result))
    waiting = [job for job in batch if job.name not in results]
    if prepare and sum(job.name[:2] != LAST for job in waiting) > 1:
        started = time.monotonic()
        prepare(profile, dataset, root)
        tqdm.write(f"prepared in {time.monotonic() - started:.0f} s")
    for result in _run_all(waiting, jobs):
        tqdm.write(str(result))
        results[result.notebook] = result
    return [results[job.name] for job in batch]


def _run_all(waiting: list[Job], jobs: int | None) -> Iterator[Result]:
    """Yield results as they come: the longest notebook starts first, and `LAST` when all others are done."""
    if not waiting:
        return
    cores = os.cpu_count() or 1
    jobs = max(1, min(jobs or min(cores, 4), len(waiting)))
    each = threads() or max(1, cores // jobs)
    groups = [[job for job in waiting if (job.name[:2] == LAST) == last] for last in (False, True)]
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (each,))
    bar = tqdm(total=len(waiting), desc="notebooks", unit="", disable=None)  # only on a terminal
    with bar:
        try:
            for group in groups:
                group.sort(key=Job.usual_seconds, reverse=True)
                futures = {pool.submit(_execute, job): job for job in group}
                for future in as_completed(futures):
                    yield _result(future, futures[future])
                    bar.update()
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()  # a kernel ends by itself when its parent is gone
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _result(future: Future, job: Job) -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        error = "its process was killed; if memory ran out, run fewer notebooks at a time: --jobs 1"
        return Result(job.name, "failed", 0.0, error)


def _start_worker(threads: int) -> None:
    """Set what all notebooks of a process share; their kernels inherit it. The process ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ |= {
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait by spinning take seven times as long where another program keeps a core busy.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONHASHSEED": "0",
        "TQDM_MININTERVAL": "10",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _end_with_parent() -> None:
    """Wait until the parent has ended, even by SIGKILL, and end this process; then its kernel ends by itself."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _execute(job: Job) -> Result:
    """Execute one notebook in this process."""
    os.environ |= {"RETAILKIT_RUN_DIR": str(job.output), "RETAILKIT_RUN_KEY": job.key, "RETAILKIT_RUN_DATA": job.data}
    started = time.monotonic()
    # An earlier record goes, so that a notebook that fails before `runs.start` leaves a trace as well.
    facts = {"notebook": job.name, "profile": job.parameters["PROFILE"], "dataset": job.parameters["DATASET"]}
    facts |= {"status": "running", "key": job.key, "seconds": 0.0}
    facts |= {"metrics": {}, "figures": [], "tables": {}, "skipped": {}}
    write_record(job.record, facts)
    error = _papermill(job)
    seconds, record = time.monotonic() - started, read_record(job.record) or facts
    if not error and not (record.get("status") == "ok" and record.get("key") == job.key):
        error = "the notebook never called run.finish()"
    if error:
        write_record(job.record, record | {"status": "failed", "error": error, "seconds": round(seconds, 2)})
    return Result(job.name, "failed" if error else "ok", seconds, error)


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
    if not root.exists() or (root.is_dir() and given["DATASET"] == "synthetic"):
        return ""
    from retailkit.data.folder import files_below, files_in_csv

    files = files_below(root, []) if root.is_dir() else [root, *files_in_csv(root)]
    return digest([[os.path.relpath(path, root), file_identity(path)] for path in sorted(files) if path.is_file()])


def _sources_identity() -> str:
    files = sorted(path for path in Path(__file__).parents[1].rglob("*") if path.is_file())
    return digest([path.read_bytes() for path in files if path.suffix != ".pyc"])
