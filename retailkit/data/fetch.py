"""Downloads of data sets: licence and size are told first, the content is verified.

A data set comes as one zip of a pinned commit. GitHub does not promise the bytes of its zips, so what is unpacked is
verified (of the test photos of Grocery Store, which were not at hand, only their number).
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pooch

from retailkit.cache import replacing
from retailkit.config import DataError, UsageError, cache_dir, data_root, pick
from retailkit.data.readers import LISTS, PUBLISHED, load_grocery_store

AGAIN = "check the connection and run the same command again"
UNPACKED = 1 << 32  # bytes that a download may unpack to
BY_HAND = (
    "grozi120 cannot be downloaded by this command: get it from {url} and lay it out as "
    "inVitro/<1..120>/web/JPEG/webN.jpg and inSitu/<1..120>/video/videoN.png, then load it with --root; for "
    f"the published list of 1,200 test crops put {' and '.join(LISTS)} of github.com/jonathan016/rpdr beside"
)


@dataclass(frozen=True)
class Archive:
    """A data set in a folder of a GitHub repository."""

    url: str  # of the zip of one commit
    folder: str  # of the repository
    files: Callable[[Path], list[Path]]  # returns the files to verify of the folder on disk
    sha256: str  # of them, see `list_sha256`
    complete: Callable[[Path], bool] = lambda root: True  # False where files are missing that `sha256` does not cover


def _grocery_files(root: Path) -> list[Path]:
    table = load_grocery_store(root).table
    photos = table.loc[table["split"] != "test", "image"]
    return [root / "classes.csv", root / "train.txt", root / "val.txt", *map(Path, photos)]


ARCHIVES = {
    "grocery_store": Archive(
        # After the validation split was added (November 2019).
        "https://github.com/marcusklasson/GroceryStoreDataset/archive/b545e4c5db0a77d9274bc7753eb409f83772a3a5.zip",
        "dataset",
        _grocery_files,
        "aeefda0e19f287d86b023a3fc57bdd8e953eb11046e37f0f60b7bf7f6dfca97a",
        lambda root: (load_grocery_store(root).table["split"] == "test").sum() == 2485,
    ),
    "finegrainocr": Archive(
        "https://github.com/Tubbias/finegrainocr/archive/e732ab657ed7003cf131eb6c6799420271591474.zip",
        "samples",
        lambda root: [*root.glob("Images/*/*.jpg"), *root.glob("Text/*/*.json")],
        "84d24b736e70ba63770c4c39d0599620be4272ee2a54fc04fe18134f99c860b8",
    ),
}


def fetch(name: str, root: str | Path | None = None) -> Path:
    """Download a data set and return its folder; one that is there and right is left alone.

    Of FineGrainOCR, these are the 12 samples in its repository. Its full set (53.7 GB, one zip) is got by hand.

    Args:
        name: `grocery_store` or `finegrainocr`; `grozi120` says where to get it by hand.
        root: where it goes; None takes `$RETAILKIT_DATA/<name>` where that exists, else the cache folder.

    Raises:
        UsageError: unknown name, or a data set that cannot be downloaded.
        DataError: the download failed or is not the published one.
    """
    if pick([*ARCHIVES, "grozi120"], name, "data set to fetch") not in ARCHIVES:
        raise UsageError(BY_HAND.format(**PUBLISHED[name]))
    archive, info, root = ARCHIVES[name], PUBLISHED[name], Path(root) if root else data_root(name)
    print(f"{name}: {info['size']}, licence {info['licence']}, {info['url']}")
    print(f"{archive.url} -> {root}")
    if not _is_right(archive, root):
        packed = _download(archive.url, cache_dir("downloads"), f"{name}-{Path(archive.url).name}")
        _unpack(packed, archive.folder, root)
        packed.unlink()
        if not _is_right(archive, root):
            raise DataError(f"{root}: not the published files of {name}; delete the folder and run the command again")
    return root


def list_sha256(root: Path, files: list[Path]) -> str:
    """Return the SHA-256 of the lines that `sha256sum` prints of the files, sorted by their path below `root`."""
    paths = sorted(file.relative_to(root).as_posix() for file in files)
    lines = "".join(f"{pooch.file_hash(root / path)}  {path}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


def _is_right(archive: Archive, root: Path) -> bool:
    try:
        return archive.complete(root) and list_sha256(root, archive.files(root)) == archive.sha256
    except DataError:
        return False


def _download(url: str, folder: Path, name: str) -> Path:
    pooch.get_logger().setLevel("WARNING")
    registry = pooch.create(folder, "", registry={name: None}, urls={name: url}, retry_if_failed=3)
    try:
        return Path(registry.fetch(name, downloader=pooch.HTTPDownloader(progressbar=True)))
    except OSError as error:  # of the network as well
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{url}: cannot be downloaded to {folder} ({reason}); {AGAIN}") from None


def _unpack(packed: Path, folder: str, root: Path) -> None:
    """Unpack one folder of a zip whose paths begin with the repository's name, without hidden files."""
    try:
        with zipfile.ZipFile(packed) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > UNPACKED:
                raise DataError(f"{packed}: unpacks to {size:,} bytes, which is not the published data set; delete it")
            for member in archive.infolist():
                _, *parts = PurePosixPath(member.filename).parts or ("",)
                if member.is_dir() or parts[:1] != [folder] or any(part.startswith(".") for part in parts):
                    continue
                target = root.joinpath(*parts[1:])
                with archive.open(member) as source, replacing(target) as draft, draft.open("wb") as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: encrypted, unknown packing
        packed.unlink()
        raise DataError(f"{packed}: not a whole zip ({error}); it was deleted, {AGAIN}") from None
