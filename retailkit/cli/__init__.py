"""The `retailkit` command. Each command says what it did in plain lines, and fails in one.

Exit codes: 0 done, 1 work failed or an expectation is not met, 2 the call has to change, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings

import typer

from retailkit.cli import recogniser, study, workbook  # noqa: F401  (each adds its commands to `app`)
from retailkit.cli.options import app
from retailkit.config import ALONE, UsageError, explained, rank

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on a busy machine


def main() -> None:
    """Run the command line; whatever fails ends in one line per fault on stderr and an exit code."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show
    if rank() is not None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice on how to use its classes
    if rank():  # the first of the processes that `accelerate launch` has started speaks for all
        os.environ["TQDM_DISABLE"], sys.stdout = "1", open(os.devnull, "w")  # noqa: SIM115
        warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *where, **more: typer.secho(f"warning: {message}", fg="yellow", err=True)
    try:
        if rank() is not None and words[:1] != ["train"]:
            raise UsageError(ALONE)
        if (code := app(words, standalone_mode=False) or 0) == 130:  # Typer makes it of an interrupt, without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            raise
        line, code = explained(error)
        typer.secho(f"retailkit: {line}", fg="red", err=True)
        sys.exit(code)
