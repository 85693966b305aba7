"""Many independent pieces of work on the processes of this machine, or on the workers of a dask scheduler.

`with workers(jobs) as pool:` starts processes of one thread each, and `pool.as_done(work, pieces, label)` yields each
piece with what came of it. With the address of a scheduler the same pieces go to its workers, which have to share the
disk.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from retailkit.cache import LIBRARIES, digest, package_identity
from retailkit.config import UserError, threads

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 30  # seconds that a scheduler may take to answer, and to have its first worker
ALONE = 60  # seconds without any worker after which the work is given up
KILLED = "its process was killed; if memory ran out, run fewer at a time: --jobs 1"


class ClusterError(UserError):
    """The workers of a scheduler cannot do the work as this process would: nothing more is sent to them."""


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
            pieces: what can be pickled.
            label: what the progress bar is called; it is shown on a terminal only.

        Raises:
            ClusterError: a worker does not share the disk, has other sources or several threads, or all are gone.
        """
        from distributed import CancelledError, wait

        expected = (self.shared, installation()) if self.shared else None
        waiting, running, idle = iter(pieces), {}, 0
        with tqdm(total=len(pieces), desc=label, unit="", disable=None) as bar:
            while True:
                free = max(1, sum(self.client.nthreads().values())) - len(running)
                for piece in islice(waiting, free):
                    running[self.client.submit(_on_worker, work, piece, expected, pure=False)] = piece
                if not running:
                    return
                try:
                    with self.client.as_current():
                        done = wait(list(running), timeout=ALONE, return_when="FIRST_COMPLETED").done
                except TimeoutError:
                    idle = 0 if self.client.nthreads() else idle + 1
                    if idle > 1:
                        raise ClusterError(f"no worker for {ALONE} s; start some and run the same command") from None
                    continue
                except CancelledError:
                    cure = "what is finished is kept: start it again and run the same command"
                    raise ClusterError(f"the scheduler is gone; {cure}") from None
                for future in done:
                    piece, outcome = running.pop(future), _outcome(future)
                    bar.update()
                    yield piece, outcome


def _outcome(future: Any) -> Any | Exception:
    from distributed import KilledWorker

    if future.status != "error":
        return future.result()
    error = future.exception()
    if isinstance(error, ClusterError):
        raise error
    return UserError(KILLED) if isinstance(error, KilledWorker) else error


def _on_worker(work: Callable[[Any], Any], piece: Any, expected: tuple[Path, str] | None) -> Any:
    """Do one piece, on a worker that has what the client has."""
    if expected:
        from distributed import get_worker

        worker, (shared, installed) = get_worker(), expected
        if worker.state.nthreads > 1:
            cure = "start it with --nthreads 1 and as many --nworkers as there are cores"
            raise ClusterError(f"worker {worker.address} has {worker.state.nthreads} threads; {cure}")
        if not shared.exists():
            cure = "all workers need the same disk at the same path"
            raise ClusterError(f"worker {worker.address} does not see the folder {shared.parent}; {cure}")
        if installation() != installed:
            raise ClusterError(
                f"worker {worker.address} has another version of retailkit, Python or a library than here"
            )
    return work(piece)


@cache
def installation() -> str:
    """Return what stands for Python, the sources of this package and the libraries that decide a result."""
    versions = {}
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):
            versions[name] = version(name)
    return digest(platform.python_version(), package_identity(), versions)


@contextmanager
def workers(jobs: int, scheduler: str = "", shared: Path | None = None) -> Iterator[Workers]:
    """Start `jobs` processes of one thread each, or take the workers of a scheduler, until the block ends.

    An error or an interrupt ends the processes at once; they end by themselves when this process is killed. Other
    people's workers finish the piece that they have begun.

    Args:
        jobs: processes; without meaning for a scheduler.
        scheduler: its address, such as `tcp://10.0.0.5:8786`; "" starts processes here, which only this user's
            processes can reach.
        shared: folder of the results, which the workers of a scheduler must see; it exists.

    Raises:
        UserError: the scheduler does not answer, or has no worker.
    """
    if scheduler:
        with _connected(scheduler) as client, _marked(shared) as mark:
            yield Workers(client, mark)
    else:
        with _local(jobs) as client:
            yield Workers(client, None)


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
def _marked(folder: Path | None) -> Iterator[Path | None]:
    """Yield a file in a folder by which workers tell that they see the same folder."""
    if folder is None:
        yield None
        return
    mark = folder / f".shared-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


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
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _kill(cluster: Any) -> None:
    """End the worker processes without waiting for their pieces; their kernels then end by themselves."""
    for nanny in list(cluster.workers.values()):
        nanny.auto_restart = False
        with suppress(OSError, TypeError):  # it has ended
            os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep dask's own log lines away: what fails is told once, by the command."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def dask_setup(worker: Any) -> None:
    """Ignore Ctrl-C in a worker's process, which loads this module first: it reaches every process of a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
