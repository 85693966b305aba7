"""Pieces of work on several processes: what fails alone, what ends everything, and what is left behind."""

import multiprocessing
import operator
import os
import signal
from pathlib import Path

import pytest

from retailkit import cluster
from retailkit.config import UserError


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

    opened = []

    def connect(threads):
        quiet = {
            "host": "127.0.0.1",
            "protocol": "tcp",
            "dashboard_address": "127.0.0.1:0",
            "scheduler_kwargs": {"dashboard": False},
        }
        opened.append(LocalCluster(1, threads_per_worker=threads, processes=False, **quiet))
        opened.append(Client(opened[-1], set_as_default=False))
        return opened[-1]

    yield connect
    for thing in opened[::-1]:
        thing.close()


def failed(client, shared):
    with pytest.raises(cluster.ClusterError) as error:
        list(cluster.Workers(client, shared).as_done(operator.neg, [1, 2], "numbers"))
    return str(error.value)


def test_workers_that_cannot_give_the_same_results_end_the_work(client, tmp_path, monkeypatch):
    (tmp_path / "mark").touch()
    assert "has 2 threads; start it with --nthreads 1" in failed(client(2), tmp_path / "mark")
    one = client(1)
    assert "does not see the folder nowhere" in failed(one, Path("nowhere/mark"))
    assert list(cluster.Workers(one, tmp_path / "mark").as_done(operator.neg, [5], "numbers")) == [(5, -5)]
    others = iter("abcdef")
    monkeypatch.setattr(cluster, "installation", lambda: next(others))
    assert "another version of retailkit" in failed(one, tmp_path / "mark")


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 0.5)
    with (
        pytest.raises(UserError, match=r"tcp://127\.0\.0\.1:9: cannot be reached.*dask scheduler"),
        cluster.workers(1, "tcp://127.0.0.1:9"),
    ):
        pass
