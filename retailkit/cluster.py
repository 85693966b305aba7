"""Many independent pieces of work on the processes of this machine, or on the workers of a dask scheduler.

`with workers(jobs) as pool:` starts processes of one thread each, and `pool.as_done(work, pieces, label)` yields each
piece with what came of it. With the address of a scheduler the same pieces go to its workers. A worker that does not
see the folder of the results gets the files that a piece reads, by their content, and sends back those that it wrote.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tqdm import tqdm

from retailkit.cache import content_hash, digest, hash_of, package_identity, replacing, versions
from retailkit.config import UserError, cache_dir, threads

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 30  # seconds that a scheduler may take to answer, and to have its first worker
BATCH = 8 << 20  # bytes of files that are sent at once
ALONE = 60  # seconds without any worker after which the work is given up
KILLED = "its process was killed; if memory ran out, run fewer at a time: --jobs 1"


class ClusterError(UserError):
    """The workers of a scheduler cannot do the work as this process would: nothing more is sent to them."""


class Portable(Protocol):
    """A piece of work that a worker with a disk of its own can do."""

    output: Path  # folder of the results

    def inputs(self) -> Sequence[Path]:
        """Return the files that it reads, by absolute paths."""

    def moved(self, place: Callable[[Path], Path], output: Path) -> Portable:
        """Return the same piece for a disk where each input lies at `place(path)`, with another folder of results."""


class _Sent(NamedTuple):
    """What a worker with a disk of its own returns: a value, and the files that it wrote; see `_written`."""

    value: Any
    files: dict[str, bytes]


class _Missing(NamedTuple):
    """What a worker with a disk of its own returns where it lacks files: hashes of their content, and its address."""

    contents: list[str]
    worker: str


class Workers:
    """Processes that take pieces of work; see `workers`."""

    def __init__(self, client: Client, shared: Path | None) -> None:
        self.client, self.shared = client, shared

    def as_done(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], label: str
    ) -> Iterator[tuple[Any, Any | Exception]]:
        """Yield each piece with what `work` returns for it, or with its exception, in the order in which they end.

        A worker gets its next piece, in the order of `pieces`, when it has finished one; so the longest should come
        first, and a long list costs no memory.

        Args:
            work: a function of a module, so that other processes can import it; it takes one piece.
            pieces: what can be pickled; a worker that does not share the disk takes only `Portable` ones.
            label: what the progress bar is called; it is shown on a terminal only.

        Raises:
            ClusterError: a worker has other sources or several threads, or would need a shared disk, or all are gone.
        """
        from distributed import CancelledError
        from distributed.comm import CommClosedError

        try:
            yield from self._as_done(work, pieces, label)
        except (CancelledError, CommClosedError):
            cure = "what is finished is kept: start it again and run the same command"
            raise ClusterError(f"the scheduler is gone; {cure}") from None

    def _as_done(self, work: Callable[[Any], Any], pieces: Sequence[Any], label: str) -> Iterator[tuple[Any, Any]]:
        waiting, running = iter(pieces), {}
        with tqdm(total=len(pieces), desc=label, unit="", disable=None) as bar:
            while True:
                most = max(1, sum(self.client.nthreads().values()))
                while len(running) < most and (piece := next(waiting, None)) is not None:
                    try:
                        task = self._task(work, piece)
                    except OSError as error:
                        cure = "restore it and run the same command"
                        yield piece, UserError(f"{error.filename}: cannot be read ({error.strerror}); {cure}")
                    else:
                        running[self.client.submit(_on_worker, *task, pure=False)] = piece, task
                if not running:
                    return
                for future in self._ended(list(running)):
                    (piece, task), outcome = running.pop(future), _outcome(future)
                    try:
                        if isinstance(outcome, _Missing):
                            running[self._resubmit(task, outcome)] = piece, task
                            continue
                        if isinstance(outcome, _Sent):
                            outcome = _received(outcome, piece.output)
                    except UserError as error:
                        outcome = error
                    bar.update()
                    yield piece, outcome

    def _task(self, work: Callable[[Any], Any], piece: Any) -> tuple[bytes, Any, dict[str, str]]:
        """Return the arguments of `_on_worker`."""
        from distributed.protocol.pickle import dumps

        expected = (self.shared, installation()) if self.shared else None
        inputs = piece.inputs() if expected and hasattr(piece, "inputs") else ()
        # As bytes, for a scheduler would import what a piece needs, such as PyTorch, and keep all waiting.
        return dumps((work, piece)), expected, {str(path): content_hash(path) for path in inputs}

    def _ended(self, running: Sequence[Any]) -> Iterable[Any]:
        """Wait for some of the running tasks, at most a while; `ClusterError` where nobody is there to do them."""
        from distributed import wait

        try:
            with self.client.as_current():
                return wait(running, timeout=ALONE, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            pass
        try:
            self.client.wait_for_workers(1, timeout=ALONE)
        except TimeoutError:
            raise ClusterError(f"no worker for {ALONE} s; start some and run the same command") from None
        return ()

    def share_disk(self) -> bool:
        """Return whether all workers that are there now see the folder of the results."""
        return self.shared is None or all(self.client.run(_sees, self.shared).values())

    def _resubmit(self, task: tuple[bytes, Any, dict[str, str]], missing: _Missing) -> Any:
        """Send a worker the files that it lacks, and then the piece again."""
        import dask

        paths = {content: path for path, content in task[2].items()}
        # Should the worker be gone by then, another one takes the piece, and says what it lacks.
        where = {"workers": [missing.worker], "allow_other_workers": True, "pure": False}
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "16 GB"}):
            sent = [self.client.submit(_keep, part, **where) for part in _batches(missing.contents, paths)]
            self.client.gather(sent, errors="skip")  # what did not arrive is missing again
            return self.client.submit(_on_worker, *task, **where)


def _outcome(future: Any) -> Any | Exception:
    from distributed import KilledWorker

    if future.status != "error":
        return future.result()
    error = future.exception()
    if isinstance(error, ClusterError):
        raise error
    return UserError(KILLED) if isinstance(error, KilledWorker) else error


def _on_worker(task: bytes, expected: tuple[Path, str] | None, files: Mapping[str, str]) -> Any:
    """Do a task (work and piece), on a worker that has what the client has; `files` are its inputs by their content."""
    if not expected:
        work, piece = pickle.loads(task)
        return work(piece)
    from distributed import get_worker

    worker, (shared, installed) = get_worker(), expected
    if worker.state.nthreads > 1:
        cure = "start it with --nthreads 1 and as many --nworkers as there are cores"
        raise ClusterError(f"worker {worker.address} has {worker.state.nthreads} threads; {cure}")
    if installation() != installed:
        raise ClusterError(f"worker {worker.address} has another version of retailkit, Python or a library than here")
    work, piece = pickle.loads(task)
    if _sees(shared):
        return work(piece)
    if not hasattr(piece, "moved"):
        cure = "all workers need the same disk at the same path"
        raise ClusterError(f"worker {worker.address} does not see the folder {shared.parent}; {cure}")
    if missing := sorted({content for content in files.values() if not _place(content).is_file()}):
        return _Missing(missing, worker.address)
    with tempfile.TemporaryDirectory(dir=worker.local_directory) as folder:
        inputs, output = Path(folder, "inputs"), Path(folder, "output")
        output.mkdir()
        for path, content in files.items():
            target = _below(inputs, Path(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(_place(content))
        value = work(piece.moved(partial(_below, inputs), output))
        return _Sent(value, _written(output))


# -- Files of workers that do not share the disk.


def _sees(mark: Path) -> bool:
    """Say whether a file of the client can be opened here."""
    try:
        mark.open("rb").close()
    except OSError:
        return False
    return True


def _batches(contents: Sequence[str], paths: Mapping[str, str]) -> Iterator[dict[str, bytes]]:
    """Yield the content of files by its hash, about `BATCH` bytes at a time."""
    batch, size = {}, 0
    for content in contents:
        data = b""
        with suppress(OSError):
            data = Path(paths[content]).read_bytes()
        if hash_of(data) != content:
            raise UserError(f"{paths[content]}: changed or gone during the run; run the same command again")
        batch[content], size = data, size + len(data)
        if size > BATCH:
            yield batch
            batch, size = {}, 0
    yield batch


def _place(content: str) -> Path:
    return cache_dir("received", "files", content[:2]) / content


def _keep(batch: Mapping[str, bytes]) -> None:
    """Keep files on this worker by their content."""
    for content, data in batch.items():
        if hash_of(data) == content:
            with replacing(_place(content)) as draft:
                draft.write_bytes(data)


def _below(folder: Path, path: Path) -> Path:
    """Return where a file of the client lies below a folder of a worker."""
    return folder / path.relative_to(path.anchor)


def _written(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder; those in the folder itself are last, and of them the record of a run."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (-len(path.parts), path))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _received(sent: _Sent, output: Path) -> Any:
    """Write the files of a result, each in one step and in their order; return its value."""
    for name, data in sent.files.items():
        with replacing(output / name) as draft:
            draft.write_bytes(data)
    return sent.value


@cache
def installation() -> str:
    """Return what stands for Python, the sources of this package and the libraries that decide a result."""
    return digest(platform.python_version(), package_identity(), versions())


@contextmanager
def workers(jobs: int, scheduler: str = "", shared: Path | None = None) -> Iterator[Workers]:
    """Start `jobs` processes of one thread each, or take the workers of a scheduler, until the block ends.

    An error or an interrupt ends the processes at once; they end by themselves when this process is killed. Other
    people's workers finish the piece that they have begun.

    Args:
        jobs: processes; without meaning for a scheduler.
        scheduler: its address, such as `tcp://10.0.0.5:8786`; "" starts processes here, which only this user's
            processes can reach.
        shared: folder of the results, by which a worker of a scheduler tells whether it shares the disk; it exists.

    Raises:
        UserError: the scheduler does not answer, or has no worker.
    """
    mark = shared / f".shared-{uuid.uuid4().hex}" if scheduler and shared else None
    with ExitStack() as stack:
        client = stack.enter_context(_connected(scheduler) if scheduler else _local(jobs))
        if mark:
            mark.touch()
            stack.callback(mark.unlink, missing_ok=True)
        yield Workers(client, mark)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    from distributed import Client

    with _quiet():
        try:
            client = Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            cure = "start one with `dask scheduler` and give the address that it prints"
            raise UserError(f"scheduler {address}: cannot be reached ({reason}); {cure}") from None
        with client:
            try:
                client.wait_for_workers(1, timeout=CONNECT)
            except TimeoutError:
                cure = f"start some: dask worker {address} --nthreads 1"
                raise UserError(f"scheduler {address}: it has no worker; {cure}") from None
            yield client


@contextmanager
def _local(jobs: int) -> Iterator[Client]:
    """Start a scheduler and workers that are reached through TLS on this machine only."""
    import dask
    from distributed import Client, LocalCluster

    each = threads() or max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(each), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.scheduler.allowed-failures": 0,  # a piece that killed its process is not tried again
        # Pieces take seconds: what dask measures a hundred times a second about small ones costs a tenth of each core.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "2 s",
        "distributed.admin.tick.limit": "600 s",
        "distributed.admin.system-monitor.interval": "60 s",
        "distributed.scheduler.work-stealing": False,
    }
    served = find_spec("bokeh") is not None
    with dask.config.set(settings), _quiet(), _kept(*environment, "PYTHONHASHSEED", "__DASK_PARENT_PID"):
        cluster = LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": served},
            security=True,
            silence_logs=logging.CRITICAL,
            preload=[__name__],  # see `dask_setup`
        )
        with cluster, Client(cluster, set_as_default=False) as client:
            if served:
                tqdm.write(f"dashboard: {cluster.dashboard_link}")
            try:
                yield client
            except BaseException:
                _kill(cluster)
                raise


@contextmanager
def _kept(*names: str) -> Iterator[None]:
    """Give variables of the environment their values back at the end: dask sets here what it hands to its workers."""
    before = {name: os.environ[name] for name in names if name in os.environ}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def _kill(cluster: Any) -> None:
    """End the worker processes without waiting for their pieces; their kernels then end by themselves."""
    for nanny in list(cluster.workers.values()):
        nanny.auto_restart = False
        with suppress(OSError, TypeError):  # it has ended
            os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's own log lines away: what fails is told once, by the command."""
    before = {logger: logger.level for logger in map(logging.getLogger, ("distributed", "distributed.client"))}
    try:
        for logger in before:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def dask_setup(worker: Any) -> None:
    """Ignore Ctrl-C in a worker's process, which loads this module first: it reaches every process of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
