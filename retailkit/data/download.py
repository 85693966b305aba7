"""Downloads that survive a cut connection: one file, or a whole data set by its manifest."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import requests
from tqdm.auto import tqdm

from retailkit.cache import replacing
from retailkit.config import UsageError, data_root, pick
from retailkit.data.finegrainocr import FINEGRAINOCR, PER_CLASS, copy_subset
from retailkit.data.public import GROCERY_STORE, GROZI120, LISTS
from retailkit.data.table import DataError

TIMEOUT = (10, 60)  # seconds to connect, seconds between two pieces
PIECE = 1 << 15  # bytes; what a cut connection loses at most
RETRIES = 5
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

# The state after the validation split was added (November 2019).
GROCERY_COMMIT = "b545e4c5db0a77d9274bc7753eb409f83772a3a5"
GROCERY_URL = f"https://raw.githubusercontent.com/marcusklasson/GroceryStoreDataset/{GROCERY_COMMIT}/dataset"
GROCERY_TREE = f"https://api.github.com/repos/marcusklasson/GroceryStoreDataset/git/trees/{GROCERY_COMMIT}?recursive=1"
GROCERY_MANIFEST = "grocery_store.csv.gz"
TEST_MANIFEST = ".test-manifest.csv.gz"
FINEGRAINOCR_COMMIT = "e732ab657ed7003cf131eb6c6799420271591474"
FINEGRAINOCR_URL = f"https://raw.githubusercontent.com/Tubbias/finegrainocr/{FINEGRAINOCR_COMMIT}/samples"
FINEGRAINOCR_MANIFEST = "finegrainocr.csv.gz"
FETCHABLE = ("grocery_store", "grozi120", "finegrainocr")


@dataclass(frozen=True)
class Expected:
    """What a file must be; None means that it is not known.

    Attributes:
        size: length in bytes.
        sha256: hex digest or its first digits.
        blob_sha1: the name git gives the content (SHA-1 of a header with the length, and the bytes).
    """

    size: int | None = None
    sha256: str | None = None
    blob_sha1: str | None = None

    @property
    def verifiable(self) -> bool:
        """True where a digest is known."""
        return bool(self.sha256 or self.blob_sha1)

    def matches(self, path: Path) -> bool:
        """Return whether the file is there and is the expected one."""
        if not path.is_file() or (self.size is not None and path.stat().st_size != self.size):
            return False
        if self.sha256 and not file_sha256(path).startswith(self.sha256.lower()):
            return False
        return not self.blob_sha1 or blob_sha1(path) == self.blob_sha1


@dataclass(frozen=True)
class Entry:
    """One file of a manifest: its path below the root, with forward slashes, and what it must be."""

    path: str
    expected: Expected


def fetch(
    name: str,
    root: str | Path | None = None,
    *,
    source: str | Path | None = None,
    per_class: tuple[int | None, int | None] | None = None,
    long_edge: int | None = None,
    base_url: str | None = None,
    tree_url: str = GROCERY_TREE,
    manifest: Sequence[Entry] | None = None,
    jobs: int = 8,
    retries: int = RETRIES,
    backoff: float = 0.5,
) -> Path:
    """Download a data set, or go on with a download that stopped. What is there and right is left alone.

    Grocery Store comes file by file from a pinned commit. Verified: the lists, classes, iconic pictures and
    descriptions, training and validation photos by the SHA-256 of the manifest in this package; `test.txt` and
    the test photos by length and git blob SHA-1 as GitHub lists them for that commit when they are
    first fetched (the list is kept beside the data). Not verified: that this list is the one of the commit.

    Of FineGrainOCR, the 12 samples in its repository are downloaded, verified by the SHA-256 of the manifest in this
    package. Its full set (53.7 GB, one zip) is got by hand; `source` then copies the subset that is drawn from it.

    Args:
        name: `grocery_store` or `finegrainocr`; `grozi120` says where to get it by hand.
        root: where it goes; None takes `$RETAILKIT_DATA/<name>` where that exists, else the cache folder.
        source: FineGrainOCR's zip or its unpacked folder, see `finegrainocr.copy_subset`.
        per_class: for `source`, see there; None takes 100 and 50.
        long_edge: for `source`, see there.
        base_url: what the manifest's paths are relative to; None takes the published place.
        tree_url: GitHub's recursive listing of the commit.
        manifest: files with a known SHA-256; None takes the one in this package.
        jobs: files at a time.
        retries: see `fetch_file`.
        backoff: see `fetch_file`.

    Returns:
        The folder to load from.

    Raises:
        UsageError: unknown name, or a data set that cannot be downloaded.
        DataError: a file cannot be had or is not the expected one; run the same command again to go on.
    """
    pick(FETCHABLE, name, "data set to fetch")
    if name == "grozi120":
        raise UsageError(
            f"grozi120 cannot be downloaded by this command: get it from {GROZI120['url']} and lay it out as "
            "inVitro/<1..120>/web/JPEG/webN.jpg and inSitu/<1..120>/video/videoN.png, then load it with --root; for "
            f"the published list of 1,200 test crops put {' and '.join(LISTS)} of github.com/jonathan016/rpdr beside"
        )
    if name != "finegrainocr" and source is not None:
        raise UsageError(f"{name} is downloaded: --from is for finegrainocr only")
    if source is None and (per_class is not None or long_edge is not None):
        raise UsageError("--per-class and --long-edge draw from the full set of finegrainocr: give it by --from")
    root, options = Path(root) if root else data_root(name), {"jobs": jobs, "retries": retries, "backoff": backoff}
    if name == "finegrainocr":
        print(f"FineGrainOCR: {FINEGRAINOCR['size']}, licence {FINEGRAINOCR['licence']}, {FINEGRAINOCR['url']}")
        if source is not None:
            return copy_subset(source, root, per_class or PER_CLASS, long_edge)
        return _fetch_samples(root, base_url or FINEGRAINOCR_URL, manifest, options)
    base_url = base_url or GROCERY_URL
    print(f"Grocery Store: {GROCERY_STORE['size']}, licence {GROCERY_STORE['licence']}, {GROCERY_STORE['url']}")
    print(f"commit {GROCERY_COMMIT[:12]} -> {root}")
    known = read_manifest(files("retailkit.data") / GROCERY_MANIFEST) if manifest is None else manifest
    fetch_all(known, base_url, root, **options)
    fetch_all(_test_entries(root, tree_url, retries, backoff), base_url, root, **options)
    return root


def fetch_all(
    entries: Sequence[Entry],
    base_url: str,
    root: Path,
    *,
    jobs: int = 8,
    retries: int = RETRIES,
    backoff: float = 0.5,
) -> None:
    """Download the files of a manifest below `root`, several at a time; the first failure ends it.

    Raises:
        DataError: see `fetch_file`; files that were complete stay.
    """
    missing = [entry for entry in entries if not entry.expected.matches(root / entry.path)]
    if not missing:
        return
    sessions = threading.local()

    def get(entry: Entry) -> int:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
        url = f"{base_url.rstrip('/')}/{quote(entry.path)}"
        return _fetch(url, root / entry.path, entry.expected, retries, backoff, sessions.own).stat().st_size

    total = sum(entry.expected.size or 0 for entry in missing)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=total, unit="B", unit_scale=True, desc=root.name) as bar:
        tasks = [pool.submit(get, entry) for entry in missing]
        try:
            for task in as_completed(tasks):
                bar.update(task.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
    return _fetch(url, Path(path), Expected(size, sha256), retries, backoff, session or requests.Session())


def make_manifest(root: str | Path) -> list[Entry]:
    """Return the files below `root` by path, with their lengths and SHA-256."""
    paths = sorted(p for p in Path(root).rglob("*") if p.is_file() and not p.name.startswith("."))
    return [Entry(p.relative_to(root).as_posix(), Expected(p.stat().st_size, file_sha256(p))) for p in paths]


def write_manifest(path: str | Path, entries: Sequence[Entry]) -> None:
    """Write a manifest: `path,size,sha256,blob_sha1`, gzipped; the same entries give the same bytes."""
    lines = [
        (e.path, str(e.expected.size), e.expected.sha256 or "", e.expected.blob_sha1 or "")
        for e in sorted(entries, key=lambda e: e.path)
    ]
    text = "".join(",".join(_quoted(field) for field in line) + "\n" for line in lines)
    with replacing(path) as draft:
        draft.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_manifest(path) -> list[Entry]:
    """Read what `write_manifest` wrote, from a path or a resource of this package."""
    lines = csv.reader(gzip.decompress(path.read_bytes()).decode().splitlines())
    return [Entry(name, Expected(int(size), sha256 or None, sha1 or None)) for name, size, sha256, sha1 in lines]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_sha1(path: str | Path) -> str:
    """Return the name that git gives a file's content, as 40 hex digits."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _PassingError(Exception):
    """A failure that may pass: worth another try."""


def _quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"') else field


def _fetch_samples(root: Path, base_url: str, manifest: Sequence[Entry] | None, options: dict) -> Path:
    """Download FineGrainOCR's samples and say how to get at the full set."""
    print(f"samples, commit {FINEGRAINOCR_COMMIT[:12]} -> {root}")
    known = read_manifest(files("retailkit.data") / FINEGRAINOCR_MANIFEST) if manifest is None else manifest
    fetch_all(known, base_url, root, **options)
    print(
        f"the full set is a zip linked at {FINEGRAINOCR['url']}; with it or its unpacked folder, "
        "`retailkit fetch finegrainocr --from PATH --per-class 100 50 --long-edge 512` copies the subset"
    )
    return root


def _test_entries(root: Path, tree_url: str, retries: int, backoff: float) -> list[Entry]:
    """Return the files of the test split: from the list kept beside the data, else from GitHub."""
    kept = root / TEST_MANIFEST
    if not kept.is_file():
        listing = root / ".tree.json"
        fetch_file(tree_url, listing, retries=retries, backoff=backoff)
        write_manifest(kept, _parse_tree(listing))
        listing.unlink()
    return read_manifest(kept)


def _parse_tree(path: Path) -> list[Entry]:
    """Return `dataset/test.txt` and the files below `dataset/test` from GitHub's listing of a commit."""
    cure = "GitHub allows few questions an hour: run the same command again later"
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        blobs = [e for e in answer["tree"] if e["type"] == "blob" and e["path"].startswith("dataset/test")]
        entries = [Entry(e["path"].removeprefix("dataset/"), Expected(e["size"], None, e["sha"])) for e in blobs]
    except (ValueError, KeyError, TypeError):
        path.unlink()
        raise DataError(f"the listing of Grocery Store's test photos is not readable; {cure}") from None
    if answer.get("truncated") or not entries or any(".." in Path(e.path).parts for e in entries):
        path.unlink()
        raise DataError(f"the listing of Grocery Store's test photos is not complete; {cure}")
    return entries


def _fetch(url: str, path: Path, expected: Expected, retries: int, backoff: float, session: requests.Session) -> Path:
    """Do the work of `fetch_file`, with any kind of digest."""
    if expected.matches(path):
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not expected.verifiable:
            part.unlink(missing_ok=True)  # nothing would tell a stale beginning from a good one
        _download(url, part, expected.size, retries, backoff, session)
        _verify(url, path, part, expected)
        os.replace(part, path)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None
    return path


def _download(url: str, part: Path, size: int | None, retries: int, backoff: float, session: requests.Session) -> None:
    """Bring `part` to its full length, with as many tries as it takes."""
    for attempt in range(retries + 1):
        try:
            _continue(url, part, size, session)
            return
        except (
            _PassingError,
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as e:
            reason = e
        except requests.RequestException as error:
            raise DataError(f"{url}: cannot be downloaded ({_short(error)}); check the address") from None
        if attempt < retries:
            time.sleep(min(backoff * 2**attempt, 30))
    raise DataError(
        f"{url}: cannot be downloaded after {retries + 1} tries ({_short(reason)}); "
        "check the connection and run the same command again, it goes on where it stopped"
    )


def _continue(url: str, part: Path, size: int | None, session: requests.Session) -> None:
    """Ask for what `part` lacks and append it."""
    have = part.stat().st_size if part.exists() else 0
    if have and size is not None and have >= size:
        return  # complete, or too long: `_verify` tells
    # Ranges count the bytes on the wire, so the server must not compress them.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is complete, or longer than the file
            if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            raise _PassingError("the part file did not fit")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _PassingError(f"the server answers {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise DataError(f"{url}: the server answers {answer.status_code} {answer.reason}; check the address")
        resumed = answer.status_code == 206
        length = answer.headers.get("Content-Length")
        with open(part, "ab" if resumed else "wb") as file:
            for piece in answer.iter_content(PIECE):
                file.write(piece)
        if length is not None and part.stat().st_size < int(length) + (have if resumed else 0):
            raise _PassingError("the connection was cut")


def _verify(url: str, path: Path, part: Path, expected: Expected) -> None:
    if expected.matches(part):
        return
    digest = expected.sha256 or expected.blob_sha1 or ""
    got = blob_sha1(part) if expected.blob_sha1 else file_sha256(part)
    length = part.stat().st_size
    part.unlink()
    raise DataError(
        f"{path}: {url} is not the expected file ({length} bytes, checksum {got[:12]}; expected "
        f"{'any number of' if expected.size is None else expected.size} bytes, {digest[:12] or 'any'}); "
        "it was deleted, run the same command again"
    )


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
