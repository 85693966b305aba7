"""Downloads that survive a cut connection: one file, or a whole data set by its manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path

import requests

from retailkit.data.table import DataError

TIMEOUT = (10, 60)  # seconds to connect, seconds between two pieces
PIECE = 1 << 20
RETRIES = 5


class _Passing(Exception):
    """A failure that may pass: worth another try."""


def fetch_file(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    size: int | None = None,
    *,
    retries: int = RETRIES,
    backoff: float = 0.5,
    session: requests.Session | None = None,
) -> Path:
    """Download one file, once: a file that is there and right is left alone.

    The bytes go to `<path>.part`, which takes the place of `path` only when complete and verified. A cut
    connection is resumed where it broke (HTTP Range), in this call and, where `sha256` is known, by the next.

    Args:
        url: where the file lies.
        path: where it goes; folders are created.
        sha256: hex digest, or its first eight digits or more (as in the names of torch weights). None
            verifies nothing but the length.
        size: length in bytes, if known.
        retries: tries after the first, for failures that may pass (cut or refused connection, 429, 5xx).
        backoff: seconds before the second try; doubles with each further one, up to 30.
        session: connection to reuse.

    Returns:
        `path`.

    Raises:
        DataError: the server does not have the file or cannot be reached, the content is not the expected
            one (the part file is then deleted), or the disk is full.
    """
    path = Path(path)
    if _is_right(path, sha256, size):
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sha256 is None:
            part.unlink(missing_ok=True)  # nothing would tell a stale beginning from a good one
        _download(url, part, size, retries, backoff, session or requests.Session())
        _verify(url, part, sha256, size)
        os.replace(part, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    return path


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_right(path: Path, sha256: str | None, size: int | None) -> bool:
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return sha256 is None or file_sha256(path).startswith(sha256.lower())


def _download(url: str, part: Path, size: int | None, retries: int, backoff: float, session: requests.Session) -> None:
    """Bring `part` to its full length, with as many tries as it takes."""
    for attempt in range(retries + 1):
        try:
            _continue(url, part, size, session)
            return
        except (
            _Passing,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = error
        except requests.RequestException as error:
            raise DataError(f"{url}: cannot be downloaded ({error}); check the address") from None
        if attempt < retries:
            time.sleep(min(backoff * 2**attempt, 30))
    raise DataError(
        f"{url}: cannot be downloaded after {retries + 1} tries ({_short(reason)}); "
        "check the connection and run the same command again, it goes on where it stopped"
    )


def _continue(url: str, part: Path, size: int | None, session: requests.Session) -> None:
    """Ask for what `part` lacks and append it."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have >= size:
        return  # complete, or too long: `_verify` tells
    # Ranges count the bytes on the wire, so the server must not compress them.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is complete, or longer than the file
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise _Passing("the part file did not fit")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Passing(f"the server answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise DataError(
                f"{url}: the server answers {answer.status_code} {answer.reason}; check the address or version"
            )
        resumed = answer.status_code == 206
        expected = (have if resumed else 0) + int(answer.headers.get("Content-Length", -1))
        with open(part, "ab" if resumed else "wb") as file:
            for piece in answer.iter_content(PIECE):
                file.write(piece)
        if "Content-Length" in answer.headers and part.stat().st_size < expected:
            raise _Passing("the connection was cut")


def _verify(url: str, part: Path, sha256: str | None, size: int | None) -> None:
    if _is_right(part, sha256, size):
        return
    got = f"{part.stat().st_size} bytes, sha256 {file_sha256(part)[:12]}"
    want = f"{size if size is not None else 'any number of'} bytes, sha256 {(sha256 or 'any')[:12]}"
    part.unlink()
    raise DataError(
        f"{part.with_suffix('')}: {url} is not the expected file (got {got}; expected {want}); "
        "it was deleted, run the same command again"
    )


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
