"""Profiles, seeds, devices and folders: every value that more than one room shares, once."""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_cache_path

# What to do about errors of the operating system.
CURES = {
    errno.ENOSPC: "free some space, or choose another place (the cache: RETAILKIT_CACHE)",
    errno.EADDRINUSE: "choose another one: --port",
}
ALONE = "accelerate launch trains whole networks only (no --frozen, --preset, --model gallery); call this without it"
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\x9b]")  # what a terminal obeys, without line ends


class UserError(ValueError):
    """Something the user can mend: the message names the thing, the value and the cure.

    The command line prints it as one line on stderr, without a traceback.
    """

    exit_code = 1  # work failed on bad input

    def __str__(self) -> str:
        """Return the message; in names of files, what is not UTF-8 and control characters are escaped."""
        text = super().__str__().encode("utf-8", "backslashreplace").decode()
        return "\n".join(map(on_one_line, text.split("\n")))


class UsageError(UserError):
    """A wrong name or option: the call has to change before anything can run."""

    exit_code = 2


class DataError(UserError):
    """A data set cannot be read; the message names the file, the row and the cure."""

    @classmethod
    def listing(cls, faults: Sequence[str]) -> DataError:
        """Return an error whose message has one line per fault; of many, the first 50 are shown."""
        more = [f"... and {len(faults) - 50} more"] if len(faults) > 50 else []
        return cls("\n".join([*map(on_one_line, faults[:50]), *more]))


def on_one_line(text: str) -> str:
    """Return a text as a terminal may show it: line breaks and control characters in it are escaped."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\n", "\\n"))


def pick(registry: Iterable[str], name: str, what: str) -> str:
    """Return `name` if `registry` holds it.

    Raises:
        UsageError: it does not; the message says `what` is unknown and gives the nearest known name and all others.
    """
    known = sorted(registry)
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"unknown {what} {name!r}{hint} (known: {', '.join(known)})")


@dataclass(frozen=True)
class Profile:
    """What a run may cost. Notebooks ask for values by name and never invent their own; the defaults are `fast`."""

    backbone: str = "efficientnet_lite0"  # image encoder, unless a notebook compares several
    epochs: int = 30  # passes over the training split for a head on frozen features
    finetune_epochs: int = 2  # passes over the training split when the whole network learns
    finetune_size: int = 128  # input side then, in pixels; test images keep the encoder's own
    per_class: tuple[int, int, int] = (48, 4, 8)  # images per class that are rendered (train, val, test)
    ocr_limit: int | None = 576  # images the OCR engine reads at most; None reads all
    seeds: int = 1  # repetitions of a comparison
    views: int = 3  # augmented views of a training image, for heads on frozen features
    nts_size: int = 128  # side of the images that NTS-Net gets, in pixels
    nts_epochs: int = 2  # passes over the training split for it
    nts_frozen: bool = True  # only its navigator and heads learn, not its backbone
    explain_size: int = 224  # side of the images that are explained, in pixels


SEEDS = 1 << 30  # seeds that a user may give; notebooks and trainings add small numbers to them
_FULL = {"backbone": "efficientnet_lite2", "epochs": 100, "finetune_epochs": 16, "finetune_size": 224,
         "per_class": (64, 10, 20), "ocr_limit": None, "seeds": 3, "views": 8,
         "nts_size": 160, "nts_epochs": 6, "nts_frozen": False, "explain_size": 260}  # fmt: skip
PROFILES = {"fast": Profile(), "full": Profile(**_FULL)}


def profile(name: str) -> Profile:
    """Return the profile called `name` (`fast` or `full`)."""
    return PROFILES[pick(PROFILES, name, "profile")]


def home() -> Path:
    """Return the checkout: the nearest folder upwards from here, or from the package, that holds `notebooks`."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks").is_dir():
            return folder
    raise UserError(f"{here}: no folder `notebooks` here or above; run this inside the checkout of the workbook")


def read_yaml(path: Path) -> Any:
    """Return what a YAML file of ours says; libyaml, where PyYAML has it, reads six times as fast as Python does.

    Raises:
        UserError: the file is no plain YAML, or asks for objects of Python.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8
        raise UserError(f"{path}: not plain YAML in UTF-8 ({' '.join(str(error).split())[:200]}); correct it") from None


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder below the cache: `$RETAILKIT_CACHE`, else the platform's own place.

    Raises:
        UserError: it cannot be made.
    """
    base = os.environ.get("RETAILKIT_CACHE", "").strip()
    path = (Path(os.path.expanduser(base)) if base else user_cache_path("retailkit", appauthor=False)).joinpath(*parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cure = "set RETAILKIT_CACHE to a folder that can be written"
        raise UserError(f"{path}: the cache cannot be made there ({error.strerror}); {cure}") from None
    return path


def data_root(name: str) -> Path:
    """Return where the data set `name` is looked for: `$RETAILKIT_DATA/<name>`, then the cache folder."""
    base = os.environ.get("RETAILKIT_DATA")
    if base and (path := Path(os.path.expanduser(base)) / name).exists():
        return path
    return cache_dir("data") / name


def threads() -> int:
    """Return the threads that `$OMP_NUM_THREADS` asks for (of `4,2`, the first level), 0 where it says nothing.

    Raises:
        UsageError: it is no such number.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").strip()
    first = given.split(",")[0].strip()
    if given and not (first.isdecimal() and 1 <= int(first) <= 4096):
        raise UsageError(f"OMP_NUM_THREADS={given} is no number of threads; set it to 1 or more, or unset it")
    return int(first or 0)


def rank() -> int | None:
    """Return the number of this process among those that `accelerate launch` has started, None where it is alone."""
    together = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return int(os.environ["RANK"]) if together else None


def device() -> str:
    """Return the device to compute on: `$RETAILKIT_DEVICE` (such as `cuda:1`), else the fastest one here.

    Raises:
        UsageError: `$RETAILKIT_DEVICE` names no device of this machine.
    """
    if (chosen := os.environ.get("RETAILKIT_DEVICE")) == "cpu":
        return chosen  # known without PyTorch, whose import takes more than a second
    import torch

    if chosen:
        try:
            fine = torch.empty(0, device=chosen).device.type in ("cpu", "cuda", "mps")
        except (RuntimeError, AssertionError, NotImplementedError):
            fine = False
        if not fine:
            cure = "set it to cpu, cuda, cuda:1 or mps"
            raise UsageError(f"RETAILKIT_DEVICE={chosen} is no device of this machine; {cure}")
        return chosen
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bfloat16() -> bool:
    """Return whether this processor multiplies matrices in bfloat16 faster than in float32."""
    import torch

    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def explained(error: BaseException) -> tuple[str, int]:
    """Return what went wrong and how to mend it, and the exit code."""
    if type(error).__name__ == "Abort":  # of click, in place of the end of a file or an interrupt
        error = error.__cause__ or KeyboardInterrupt()
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from here", 130
    if hasattr(error, "format_message"):  # of click: an unknown option or command, a missing value
        return error.format_message(), 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of PyTorch
        return "not enough memory; close other programs, or take a smaller model, smaller images or fewer jobs", 1
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not UTF-8 ({reason}); save it as UTF-8", 1
    if isinstance(error, OSError) and (error.filename or error.strerror):
        where, why = error.filename or "a file", error.strerror or type(error).__name__
        return f"{where}: {why}; {CURES.get(error.errno, 'check the path and its permissions')}", 1
    places = traceback.extract_tb(error.__traceback__)
    where = f"{Path(places[-1].filename).name}, line {places[-1].lineno}" if places else "unknown place"
    return f"{type(error).__name__}: {reason} ({where}); if the call is right, this is a fault: see it with --debug", 1
