"""The parameters of notebooks: what their cells offer, values from outside, and sweeps over several values."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from retailkit.config import SEEDS, UsageError, UserError, pick

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
KINDS = {bool: "true or false", int: "a whole number below 2**32", float: "a finite number", str: "text"}
OPTIONS = ("PROFILE", "DATASET", "ROOT")
MOST = 1000  # settings of one sweep
RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")


def parameters(notebook: Path) -> dict[str, dict[str, Any]]:
    """Return what the parameters cell of a notebook offers: name -> `default` as it is written there, `help`."""
    try:
        status = notebook.stat()
    except OSError as error:
        raise UserError(f"{notebook}: cannot be read ({error.strerror}); restore the file") from None
    return _parameters(notebook, status.st_mtime_ns, status.st_size)


@lru_cache
def _parameters(notebook: Path, *changes: int) -> dict[str, dict[str, Any]]:
    import papermill

    try:
        inferred = papermill.inspect_notebook(str(notebook))
    except Exception as error:  # of papermill, nbformat or JSON: the file is damaged
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{notebook}: cannot be read as a notebook ({reason}); restore the file") from None
    return {name: {"default": p["default"], "help": p["help"]} for name, p in inferred.items()}


def parse_parameters(pairs: Sequence[str]) -> dict[str, str]:
    """Split `NAME=VALUE` pairs; nothing after `=` is an empty text."""
    read = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"parameter {pair!r} has no value; write NAME=VALUE")
        if name.strip() in OPTIONS:
            option = f"--{name.strip().lower()}"
            raise UsageError(f"parameter {pair!r}: use {option}, so that the results go to their place")
        read[name.strip()] = value
    return read


def parse_sweep(given: Sequence[str]) -> list[dict[str, str]]:
    """Return the settings of `SEED=0..4` (both ends belong to it) and `K=0,2,4`: all combinations of the values.

    Raises:
        UsageError: no values, a range that runs backwards, a parameter given twice, or more than `MOST` settings.
    """
    values: dict[str, list[str]] = {}
    for pair in given:
        ((name, text),) = parse_parameters([pair]).items()
        if name in values:
            raise UsageError(f"--sweep {pair}: {name} is swept twice; give all its values at once, with commas")
        values[name] = [value for part in text.split(",") for value in _expanded(pair, part)]
        if len(values[name]) > MOST:
            raise UsageError(f"--sweep {pair}: more than {MOST} values; sweep in parts")
    settings = list(itertools.islice(itertools.product(*values.values()), MOST + 1))
    if len(settings) > MOST:
        raise UsageError(f"--sweep: more than {MOST} combinations; sweep in parts")
    return [dict(zip(values, setting, strict=True)) for setting in settings]


def _expanded(pair: str, part: str) -> Sequence[str]:
    if not (ends := RANGE.fullmatch(part)):
        return [part]
    first, last = map(int, ends.groups())
    if last < first:
        raise UsageError(f"--sweep {pair}: {part.strip()} runs backwards; write the smaller number first")
    return list(map(str, range(first, min(last, first + MOST) + 1)))


def typed(notebook: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for a notebook's parameters, each of the type of its default; texts are read as that type.

    Raises:
        UsageError: an unknown parameter, or a value that does not go with its default.
    """
    return {name: _as_default(name, value, _default(notebook, name)) for name, value in given.items()}


def changed(notebooks: Iterable[Path], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ from the defaults of at least one notebook."""
    found: dict[str, Any] = {}
    for path in notebooks:
        differing = {name: value for name, value in typed(path, given).items() if value != _default(path, name)}
        found = differing | found  # of values that are of two types, the first one
    return found


def _default(notebook: Path, name: str) -> Any:
    known = parameters(notebook)
    return ast.literal_eval(known[pick(known, name, f"parameter of {notebook.stem}")]["default"])


def _as_default(name: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if isinstance(value, str) and kind is not str:
        text = value.strip().lower()
        with suppress(ValueError, KeyError):
            value = WORDS[text] if kind is bool else kind(text)
    elif kind is float and type(value) is int:
        value = float(value)
    fits = type(value) is kind and (kind not in (int, float) or abs(value) < 2**32)  # which NaN is not
    if not fits or (name == "SEED" and not 0 <= value < SEEDS):
        what = f"a whole number from 0 to {SEEDS - 1:,}" if name == "SEED" else KINDS[kind]
        raise UsageError(f"parameter {name}={value}: give {what}, as its default {default!r} is")
    return value
