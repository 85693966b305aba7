"""Hostile input made by code, for every door of the package: no file of it is committed.

A door is a function that hands a case to the real command or function. It returns what was read, after it has checked
that value, or raises `Refused` with the line that a user sees.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 48
CLASSES = {"milk": (235, 230, 220), "soup": (200, 60, 40)}
LIMIT = 2 * 10**9  # bytes by which a case may let the process grow
SECONDS = 60  # of computing that a case may take on a slow machine


class Refused(Exception):
    """A door refused a case, in one line."""


@dataclass(frozen=True)
class Case:
    """One input, the door that it is put to, and what has to come of it."""

    door: str
    name: str
    run: Callable[[Any], str]  # is given the shop
    read: bool | None  # None where both are right, as a library may learn to read it
    says: tuple[str, ...] = ()  # one of these is part of what is said
    heavy: bool = False


def cases(door: str, run: Callable[[Any, Any, str], str], table: dict[str, Any], heavy=()) -> list[Case]:
    """Return the cases of a table: name -> (input, what is expected).

    A text is a part of the line that refuses the input, and a tuple of texts are several of which one is said, where ""
    means that it may be read as well; anything else is handed to the door, which compares it with what it has read.
    """
    made = []
    for name, (given, expected) in table.items():
        texts = (expected,) if isinstance(expected, str) else expected if isinstance(expected, tuple) else ()
        refused = bool(texts) and all(isinstance(text, str) for text in texts)
        read = None if refused and "" in texts else not refused
        value = None if refused else expected
        act = lambda shop, name=name, given=given, value=value: run(shop, name, given, value)  # noqa: E731
        made.append(Case(door, name, act, read, tuple(filter(None, texts)) if refused else (), name in heavy))
    return made


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


class Shop:
    """A folder with photos, a checkpoint and an explanation, and a way to call the command in it."""

    def __init__(self, folder: Path, monkeypatch: Any, capsys: Any) -> None:
        self.folder, self.patch, self.capsys = folder, monkeypatch, capsys

    def call(self, *words: Any) -> tuple[int, str, str]:
        """Call the command; returns exit code, output and errors, which are what every command promises."""
        from retailkit import cli

        self.patch.setattr(sys, "argv", ["retailkit", *map(str, words)])
        self.capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        out, err = self.capsys.readouterr()
        assert code in (0, 1, 2), err
        assert "Traceback" not in out + err and "this is a fault" not in err, err
        assert sum(line.startswith("retailkit: ") for line in err.splitlines()) == (code != 0), err
        return code, out, err

    def cli(self, *words: Any, names: str = "") -> str:
        """Return the output of the command, or raise `Refused` with the line that names what is at fault."""
        code, out, err = self.call(*words)
        if not code:
            return out
        lines = [line for line in (out + err).splitlines() if names in line]
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

    start, forget, before = time.process_time(), _forget_peak(), _peak()
    try:
        said, read = case.run(shop), True
    except (Refused, UserError) as error:
        said, read = str(error), False
    seconds, peak = time.process_time() - start, _peak()
    assert case.read in (None, read), f"{'read' if read else 'refused'}: {said}"
    assert read or not case.says or any(part in said for part in case.says), said
    assert read or said.strip(), "nothing was said"
    assert seconds < SECONDS and (peak - before < LIMIT or not forget), f"{seconds:.0f} s, {peak / 1e6:.0f} MB"
    row = {"door": case.door, "case": case.name, "outcome": "read" if read else "refused", "message": shop.plain(said)}
    return row | {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6) if forget else ""}


def _forget_peak() -> bool:
    """Begin to measure the peak of memory anew, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """Return the largest resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
