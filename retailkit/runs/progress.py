"""What a person sees while notebooks run: a bar each on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

Say = Callable[[str], None]
Tick = Callable[[str, int, int], None]


@contextmanager
def progress() -> Iterator[tuple[Say, Tick | None]]:
    """Yield `say` and `tick` for `execute`; where stdout is no terminal there is nothing to tick."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    if not console.is_terminal:
        yield partial(print, flush=True), None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cells"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        tasks = {}

        def say(line: str) -> None:
            bars.console.print(line, markup=False, highlight=False)
            name, _, event = line.partition(": ")
            if name in tasks and event != "running":
                bars.remove_task(tasks.pop(name))

        def tick(name: str, done: int, cells: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=cells)
            bars.update(tasks[name], completed=done)

        yield say, tick
