"""The child process that executes one notebook: `python -P retailkit/runs/papermill.py '{"input": ...}'`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from traitlets.config import Config


def look_again_after_sending() -> None:
    """Keep widget cells from hanging a headless run.

    nbclient's output widget sends a message on the very socket on which it awaits a reply; the send can swallow
    the event that announces the reply (nbclient issue 312). Asking pyzmq to look at its events again cures it.
    """
    from jupyter_client.channels import AsyncZMQSocketChannel

    plain = AsyncZMQSocketChannel.send
    if getattr(plain, "looks_again", False):
        return

    def send(self, message):
        plain(self, message)
        self.socket._schedule_remaining_events()

    send.looks_again = True
    AsyncZMQSocketChannel.send = send


def main(order: dict) -> int:
    """Execute `input` into `output`; return 0, or 1 after printing the failed cell's error in one line."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    look_again_after_sending()
    notebook = Path(order["input"])
    try:
        with _channels() as channels:
            papermill.execute_notebook(
                str(notebook),
                order["output"],
                parameters=order["parameters"],
                kernel_name="python3",
                cwd=str(notebook.parent),
                execution_timeout=order["timeout"],
                start_timeout=120,
                config=channels,
                progress_bar={"mininterval": 0.5, "ascii": True},  # into the log, where the runner reads it
                log_output=False,
            )
    except PapermillExecutionError as error:
        return _tell(f"cell {error.exec_count}: {error.ename}: {error.evalue}")
    except Exception as error:
        return _tell(f"{type(error).__name__}: {error}")
    return 0


@contextmanager
def _channels() -> Iterator[Config]:
    """Yield a configuration by which the kernel is spoken to through files.

    Kernels that start at the same time now and then draw the same TCP port, and one of them then never answers.
    """
    if os.name != "posix":
        yield Config()
        return
    with tempfile.TemporaryDirectory(prefix="retailkit") as folder:
        yield Config({"KernelManager": {"transport": "ipc", "ip": str(Path(folder, "kernel"))}})


def _tell(error: str) -> int:
    print("\n" + " ".join(error.split()), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
