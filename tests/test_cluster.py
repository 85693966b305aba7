"""Pieces of work on several processes: what fails alone, what ends everything, and what is left behind."""

import multiprocessing
import operator
import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from retailkit import cluster
from retailkit.config import UserError


@pytest.mark.fault(
    fault="a worker process is killed",
    injected="SIGKILL for one of two processes in the middle of its piece",
    lost="nothing",
    repeated="that piece, which is named; the others go on",
)
def test_a_piece_that_fails_or_kills_its_process_fails_alone():
    before = dict(os.environ)
    with cluster.workers(2) as pool:
        pieces = [signal.SIGKILL, 0, 0, 0]
        killed = list(pool.as_done(signal.raise_signal, pieces, "signals"))
        negative = dict(pool.as_done(operator.neg, [1, "a", 2, 3], "numbers"))
        assert list(pool.as_done(operator.neg, [], "nothing")) == []
    assert sorted(int(piece) for piece, _ in killed) == [0, 0, 0, 9]
    assert all((isinstance(found, UserError) and "was killed" in str(found)) == (piece == 9) for piece, found in killed)
    assert isinstance(negative.pop("a"), TypeError) and negative == {1: -1, 2: -2, 3: -3}
    assert not multiprocessing.active_children() and dict(os.environ) == before


def test_an_interrupt_ends_the_processes_at_once():
    with pytest.raises(KeyboardInterrupt), cluster.workers(1) as pool:
        next(pool.as_done(operator.neg, [1, 2], "numbers"))
        (process,) = multiprocessing.active_children()
        raise KeyboardInterrupt
    assert not process.is_alive() and not multiprocessing.active_children()


@pytest.fixture
def client():
    """Return a function that gives a client of one worker in this process, with so many threads."""
    from distributed import Client, LocalCluster

    here = {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": "127.0.0.1:0", "processes": False}
    with ExitStack() as opened:

        def connect(threads):
            cluster = opened.enter_context(
                LocalCluster(1, threads_per_worker=threads, scheduler_kwargs={"dashboard": False}, **here)
            )
            return opened.enter_context(Client(cluster, set_as_default=False))

        yield connect


def test_workers_that_cannot_give_the_same_results_end_the_work(client, tmp_path, monkeypatch):
    def fails(client, shared, says):
        with pytest.raises(cluster.ClusterError, match=says):
            list(cluster.Workers(client, shared).as_done(operator.neg, [1, 2], "numbers"))

    (mark := tmp_path / "mark").touch()
    fails(client(2), mark, "has 2 threads; start it with --nthreads 1")
    one = client(1)
    fails(one, Path("nowhere/mark"), "does not see the folder nowhere")
    assert list(cluster.Workers(one, mark).as_done(operator.neg, [5], "numbers")) == [(5, -5)]
    others = iter("abcdef")
    monkeypatch.setattr(cluster, "installation", lambda: next(others))
    fails(one, mark, "another version of retailkit")


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    with pytest.raises(UserError, match=r"tcp://127\.0\.0\.1:9: cannot be reached.*dask scheduler"):
        cluster.workers(1, "tcp://127.0.0.1:9").__enter__()


@dataclass(frozen=True)
class Copy:
    """A piece that copies a file and counts on finding it where it is results."""

    source: Path
    output: Path
    name: str

    def inputs(self):
        return [self.source]

    def moved(self, place, output):
        return replace(self, source=place(self.source), output=output)


def copied(piece):
    (piece.output / "figures").mkdir(exist_ok=True)
    for name in ("b.json", "a.ipynb", "figures/c.png"):
        (piece.output / name).with_stem(piece.name + Path(name).stem).write_bytes(piece.source.read_bytes())
    return str(piece.source)


@pytest.fixture
def apart(client, own_cache, monkeypatch, tmp_path):
    """Workers that see nothing of the client's disk, and the names of the files that are sent to them, in order."""
    sent, batches = [], cluster._batches
    monkeypatch.setattr(cluster, "_sees", lambda mark: False)
    monkeypatch.setattr(cluster, "_batches", lambda found, paths: sent.extend(found) or batches(found, paths))
    return cluster.Workers(client(1), tmp_path / "mark"), sent


def test_a_worker_with_a_disk_of_its_own_gets_files_once_and_sends_back_what_it_wrote(apart, tmp_path):
    (pool, sent), pieces = apart, []
    for name, content in {"one": b"1", "two": b"2" * 9_000_000, "copy of one": b"1"}.items():
        (tmp_path / name).write_bytes(content)
        pieces.append(Copy(tmp_path / name, tmp_path / "out", f"{name}-"))
    results = dict(pool.as_done(copied, pieces, "copies"))
    for piece in pieces:
        assert Path(results[piece]).name == piece.source.name and results[piece] != str(piece.source)
        for name in ("a.ipynb", "b.json", "figures/c.png"):
            found = tmp_path / "out" / Path(name).with_stem(piece.name + Path(name).stem)
            assert found.read_bytes() == piece.source.read_bytes()
    assert len(sent) == len(set(sent)) == 2 and not Path(results[pieces[0]]).exists()
    assert list(pool.as_done(copied, pieces[:1], "copies")) and len(sent) == 2


def test_a_result_that_comes_back_is_written_in_an_order_that_lets_the_record_close_it(tmp_path):
    copied(Copy(Path(__file__), tmp_path, ""))
    assert list(cluster._written(tmp_path)) == ["figures/c.png", "a.ipynb", "b.json"]


@pytest.mark.fault(
    fault="an input is pulled away or changes during a run on machines that share no disk",
    injected="the file is deleted, or written anew, after the work was planned",
    lost="nothing",
    repeated="the piece that reads it",
)
def test_an_input_that_goes_or_changes_fails_its_piece_alone(apart, tmp_path, monkeypatch):
    pool, _ = apart
    for name in "abc":
        (tmp_path / name).write_text(name)
    pieces = [Copy(tmp_path / name, tmp_path / "out", name) for name in "abc"]
    content_hash = cluster.content_hash
    monkeypatch.setattr(cluster, "content_hash", lambda path: "0" * 24 if path.name == "a" else content_hash(path))
    (tmp_path / "b").unlink()
    results = dict(pool.as_done(copied, pieces, "copies"))
    assert "a: changed or gone during the run" in str(results[pieces[0]])
    assert "b: cannot be read (No such file" in str(results[pieces[1]]) and isinstance(results[pieces[1]], UserError)
    assert isinstance(results[pieces[2]], str)
    assert sorted(os.listdir(tmp_path / "out")) == ["ca.ipynb", "cb.json", "figures"]
