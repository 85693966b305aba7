"""Downloads from a real server on loopback that can cut, refuse and spoil."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retailkit.config import UsageError
from retailkit.data import download, load
from retailkit.data.table import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; keeps a log of (path, Range) and can misbehave.

    Attributes:
        files: content by path.
        cuts: for a path, after how many bytes each of the next answers breaks off.
        fails: for a path, status codes of the next answers.
        ranges: whether Range is understood.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.fails: dict[str, list[int]] = {}
        self.ranges = True
        self.log: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        pass  # clients that hang up are part of the test


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.log.append((path, self.headers.get("Range")))
        if server.fails.get(path):
            return self.send_error(server.fails[path].pop(0))
        if path not in server.files:
            return self.send_error(404)
        content = server.files[path]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "") if server.ranges else None
        start = int(asked[1]) if asked else 0
        if start >= len(content) and asked:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts.get(path):
            body = body[: server.cuts[path].pop(0)]
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    server = Server()
    server.files["/file.bin"] = CONTENT
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def get(server, path, sha256=SHA256, size=None, name="/file.bin", retries=3):
    return download.fetch_file(server.url + name, path, sha256, size, retries=retries, backoff=0.01)


def starts(server):
    """First byte asked for, of each request."""
    return [int(asked[6:-1]) if asked else 0 for _, asked in server.log]


def kept(end, start=0):
    """Bytes on disk after a cut at `end` of an answer that began at `start`: whole pieces."""
    return start + (end - start) // download.PIECE * download.PIECE


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    path = get(server, tmp_path / "deep" / "file.bin")
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    get(server, path)
    assert len(server.log) == 1


def test_the_first_digits_of_a_checksum_are_enough(server, tmp_path):
    get(server, tmp_path / "a.bin", SHA256[:8])
    with pytest.raises(DataError, match="not the expected file"):
        get(server, tmp_path / "b.bin", "00000000")


def test_a_file_with_wrong_content_is_replaced(server, tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    assert get(server, path).read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path):
    server.cuts["/file.bin"] = [100_000, 50_000]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT
    assert starts(server) == [0, kept(100_000), kept(kept(100_000) + 50_000, kept(100_000))]


def test_the_next_call_resumes_too(server, tmp_path):
    server.cuts["/file.bin"] = [100_000]
    with pytest.raises(DataError, match=r"file\.bin.*goes on where it stopped"):
        get(server, tmp_path / "file.bin", retries=0)
    assert (tmp_path / "file.bin.part").stat().st_size == kept(100_000)
    assert not (tmp_path / "file.bin").exists()
    get(server, tmp_path / "file.bin", retries=0)
    assert starts(server) == [0, kept(100_000)]


def test_without_a_checksum_an_old_part_is_not_trusted(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"stale")
    assert get(server, tmp_path / "file.bin", sha256=None).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.cuts["/file.bin"] = [100_000]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_complete_part_needs_no_more_bytes(server, tmp_path, size):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get(server, tmp_path / "file.bin", size=size).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_names_file_and_cure_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError) as error:
        get(server, tmp_path / "file.bin", "f" * 64)
    message = str(error.value)
    assert "\n" not in message and str(tmp_path / "file.bin") in message and "run the same command again" in message
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_part_does_not_survive(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="not the expected file"):
        get(server, tmp_path / "file.bin")
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_missing_file_is_not_tried_again(server, tmp_path):
    with pytest.raises(DataError, match=r"/gone\.bin: the server answers 404"):
        get(server, tmp_path / "gone.bin", name="/gone.bin")
    assert len(server.log) == 1


def test_a_busy_server_is_tried_again(server, tmp_path):
    server.fails["/file.bin"] = [503, 429]
    assert get(server, tmp_path / "file.bin").read_bytes() == CONTENT


def test_no_server_at_all(server, tmp_path):
    with pytest.raises(DataError, match="cannot be downloaded after 2 tries"):
        download.fetch_file("http://127.0.0.1:9/x", tmp_path / "x", SHA256, retries=1, backoff=0.01)


def test_a_full_disk_is_one_clear_line(server, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"file\.bin: cannot be written .*free some space"):
            get(server, tmp_path / "file.bin")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_manifest_survives_writing_and_gives_the_same_bytes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / 'odd, "name".txt').write_text("1")
    (tmp_path / "d" / "b.txt").write_text("22")
    entries = download.make_manifest(tmp_path / "d")
    for name in ("one.csv.gz", "two.csv.gz"):
        download.write_manifest(tmp_path / name, entries[::-1])
        assert download.read_manifest(tmp_path / name) == entries
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


def test_the_packaged_manifest_is_the_published_data_set():
    entries = download.read_manifest(Path(download.__file__).parent / download.GROCERY_MANIFEST)
    photos = [e.path for e in entries if e.path.startswith(("train/", "val/"))]
    assert len(photos) == 2640 + 296
    assert {"train.txt", "val.txt", "classes.csv"} <= {e.path for e in entries}
    assert all(re.fullmatch("[0-9a-f]{64}", e.expected.sha256) and e.expected.size for e in entries)


def test_blob_sha1_is_gits(tmp_path):
    (tmp_path / "x").write_bytes(b"hello\n")
    assert download.blob_sha1(tmp_path / "x") == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.fixture
def shop(server, tmp_path):
    """Put a small Grocery Store on the server and return its manifest (without the test split)."""
    source = tmp_path / "source"
    (source / "train/Fruit/Kiwi").mkdir(parents=True)
    (source / "classes.csv").write_text(
        "name,id,coarse,coarse id,iconic,description\r\nKiwi,0,Kiwi,0,/i.jpg,/d.txt\r\n"
    )
    for split in ("train", "val", "test"):
        (source / split / "Fruit/Kiwi").mkdir(parents=True, exist_ok=True)
        lines = []
        for n in range(3):
            name = f"{split}/Fruit/Kiwi/Kiwi 00{n}.jpg"  # the published set has names with a space
            Image.new("RGB", (16, 16), (n * 40, len(split), 0)).save(source / name)
            lines.append(f"{name}, 0, 0\n")
        (source / f"{split}.txt").write_text("".join(lines))
    manifest = download.make_manifest(source)
    tree = []
    for entry in manifest:
        content = (source / entry.path).read_bytes()
        server.files["/dataset/" + entry.path.replace(" ", "%20")] = content
        sha = download.blob_sha1(source / entry.path)
        tree.append({"path": "dataset/" + entry.path, "type": "blob", "size": len(content), "sha": sha})
    server.files["/tree"] = json.dumps({"tree": tree, "truncated": False}).encode()
    return [entry for entry in manifest if not entry.path.startswith("test")]


def fetch(server, root, manifest):
    urls = {"base_url": server.url + "/dataset", "tree_url": server.url + "/tree?recursive=1"}
    return download.fetch("grocery_store", root, manifest=manifest, retries=1, backoff=0.01, **urls)


def test_a_data_set_arrives_with_its_test_split(server, shop, tmp_path, capsys):
    root = fetch(server, tmp_path / "data", shop)
    data = load("grocery_store", root)
    assert data.table["split"].value_counts().to_dict() == {"train": 3, "val": 3, "test": 3}
    assert data.split("test", size=16)[0].image.shape == (3, 16, 16)
    said = capsys.readouterr().out
    assert "MIT" in said and "MB" in said and download.GROCERY_COMMIT[:12] in said


def test_a_second_fetch_downloads_nothing(server, shop, tmp_path):
    fetch(server, tmp_path / "data", shop)
    asked = len(server.log)
    fetch(server, tmp_path / "data", shop)
    assert len(server.log) == asked


def test_only_what_is_missing_or_damaged_is_fetched_again(server, shop, tmp_path):
    root = fetch(server, tmp_path / "data", shop)
    (root / "train/Fruit/Kiwi/Kiwi 001.jpg").unlink()
    (root / "test/Fruit/Kiwi/Kiwi 002.jpg").write_bytes(b"damaged")
    server.log.clear()
    fetch(server, root, shop)
    assert {path for path, _ in server.log} == {
        "/dataset/train/Fruit/Kiwi/Kiwi%20001.jpg",
        "/dataset/test/Fruit/Kiwi/Kiwi%20002.jpg",
    }


@pytest.mark.parametrize("name", ["train/Fruit/Kiwi/Kiwi%20001.jpg", "test/Fruit/Kiwi/Kiwi%20001.jpg"])
def test_a_photo_that_is_another_one_stops_the_fetch(server, shop, tmp_path, name):
    server.files["/dataset/" + name] = server.files["/dataset/val/Fruit/Kiwi/Kiwi%20000.jpg"]
    with pytest.raises(DataError, match=r"Kiwi 001\.jpg.*not the expected file"):
        fetch(server, tmp_path / "data", shop)
    assert not list((tmp_path / "data").rglob("*.part"))


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"tree": [], "truncated": false}', b'{"message": "limit"}'])
def test_a_strange_listing_leaves_train_and_val_usable(server, shop, tmp_path, answer):
    server.files["/tree"] = answer
    with pytest.raises(DataError, match="again later"):
        fetch(server, tmp_path / "data", shop)
    data = load("grocery_store", tmp_path / "data")
    assert data.splits == ["train", "val"]
    with pytest.raises(DataError, match="retailkit fetch grocery_store"):
        data.split("test")


def test_grozi_says_where_to_get_it(tmp_path):
    with pytest.raises(UsageError, match=r"grozi\.calit2\.net.*inVitro"):
        download.fetch("grozi120", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'grozi120'"):
        download.fetch("grozi12", tmp_path)
