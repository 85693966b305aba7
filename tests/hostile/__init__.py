"""Hostile input made by code, for every door of the package: no file of it is committed.

A door is a function that hands a case to the real command or function. It returns what was read, after it has checked
that value, or raises `Refused` with the line that a user sees.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 48
CLASSES = {"milk": (235, 230, 220), "soup": (200, 60, 40)}
LIMIT = 2 * 10**9  # bytes by which a case may let the process grow
SECONDS = 60  # of computing that a case may take on a slow machine
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Refused(Exception):
    """A door refused a case, in one line."""


@dataclass(frozen=True)
class Case:
    """One input, the door that it is put to, and what has to come of it."""

    door: str
    name: str
    given: Any
    says: tuple[str, ...]  # parts of the line that refuses it, one of which is said; "" means that it may be read
    value: Any  # what the door compares with what it has read
    act: Callable[[Shop, Case], str]
    heavy: bool

    @property
    def outcomes(self) -> set[str]:
        return ({"refused"} if self.says else {"read"}) | ({"read"} if "" in self.says else set())


CASES: list[Case] = []


def door(name: str, table: dict[str, tuple[Any, Any]], heavy: Any = ()) -> Callable:
    """Put all inputs of a table, name -> (given, expected), to the function below.

    Expected is a text, or a tuple of texts, of what refuses the input; anything else is the value that is read.
    """

    def register(act: Callable[[Shop, Case], str]) -> Callable:
        for case, (given, expected) in table.items():
            texts = (expected,) if isinstance(expected, str) else expected
            refused = isinstance(texts, tuple) and isinstance(texts[0], str)
            says, value = (texts, None) if refused else ((), expected)
            CASES.append(Case(name, case, given, says, value, act, case in heavy))
        return act

    return register


def put(path: Path, given: Any) -> Path:
    """Write a text or bytes, or make what a function makes there."""
    if callable(given):
        given(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given.encode("utf-8", "surrogatepass") if isinstance(given, str) else given)
    return path


def photos(home: Path) -> None:
    """Draw four photos of each class."""
    for n, label in itertools.product(range(4), CLASSES):
        (home / "photos" / label).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(2 * n + (label == "soup")).normal(0, 12, (SIDE, SIDE, 3))
        pixels = np.clip(np.array(CLASSES[label]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(home / "photos" / label / f"{n}.png")


def checkpoint(home: Path) -> None:
    """Write a small model of both classes, `m.safetensors`, and an explanation by it, `e.safetensors`."""
    import pandas as pd
    import torch

    from retailkit import models, training
    from retailkit.explain import lime

    torch.manual_seed(0)
    model = models.build("image", sorted(CLASSES), backbone="shufflenet_v2_x1_0", weights=None).eval()
    model.fit_scalers(model.encode_frozen(torch.rand(4, 3, SIDE, SIDE)))
    history = training.History(pd.DataFrame(), 0, 0.0)
    training.save_checkpoint(model, home / "m.safetensors", history, size=SIDE, fit="pad")
    lime.explain(model, torch.rand(3, SIDE, SIDE), n_segments=4, budget=16).save(home / "e.safetensors")


@dataclass
class Shop:
    """A folder with photos, a checkpoint and an explanation, and ways to call the command in it."""

    folder: Path
    command: Callable[..., tuple[int, str, str]]
    patch: Any
    capsys: Any

    def call(self, *words: Any) -> tuple[int, str, str]:
        """Call the command; returns exit code, output and errors, which are what every command promises."""
        code, out, err = self.command(*words)
        assert code in (0, 1, 2), err
        assert "Traceback" not in out + err and "this is a fault" not in err, err
        assert sum(line.startswith("retailkit: ") for line in err.splitlines()) == (code != 0), err
        return code, out, err

    def cli(self, line: str, *words: Any, names: str = "") -> str:
        """Return the output of the command, or raise `Refused` with the line that names what is at fault."""
        code, out, err = self.call(*line.split(), *words)
        if not code:
            return out
        lines = [said for said in (out + err).splitlines() if names in said]
        assert lines, f"{names} is not named: {out}{err}"
        raise Refused(lines[-1].removeprefix("retailkit: "))

    def plain(self, text: str) -> str:
        """Return what was said in one short line, without the paths of this machine."""
        for path in (str(self.folder), str(self.folder.parent), os.environ.get("RETAILKIT_CACHE", "\0")):
            text = text.replace(path, "…")
        text = re.sub(r"/\S*site-packages|/tmp/\w+", "…", " ".join(text.split()))
        text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
        return text if len(text) <= 200 else f"{text[:150]} … {text[-40:]}"


def judge(case: Case, shop: Shop) -> dict[str, Any]:
    """Put a case to its door and return a row of the table; AssertionError where the door did not keep its promise."""
    from retailkit.config import UserError

    with suppress(OSError):
        CLEAR.write_text("5")  # Linux begins to measure the peak of memory anew
    start, before = time.process_time(), _peak()
    try:
        said, outcome = case.act(shop, case), "read"
    except (Refused, UserError) as error:
        said, outcome = str(error), "refused"
    seconds, peak = time.process_time() - start, _peak()
    assert not (shop.folder / "made").exists(), "a program in the input was run"
    assert outcome in case.outcomes, f"{outcome}: {said}"
    assert outcome == "read" or any(part and part in said for part in case.says), said
    assert seconds < SECONDS and peak - before < LIMIT, f"{seconds:.0f} s, {peak / 1e6:.0f} MB"
    row = {"door": case.door, "case": case.name, "outcome": outcome, "message": shop.plain(said)}
    return row | {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}


def _peak() -> int:
    """Return the largest resident memory of this process in bytes, 0 where no Linux tells it."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1]) if STATUS.is_file() else 0
