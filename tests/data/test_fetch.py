"""Downloads from a real server on loopback that can be busy, lacking or wrong."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from retailkit.config import DataError, UsageError
from retailkit.data import fetch, load


@pytest.fixture
def server():
    """A server with `files` (content by path), `fails` (status codes of the next answers) and `log` (paths asked)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.log.append(self.path)
            if server.fails:
                return self.send_error(server.fails.pop(0))
            if self.path not in server.files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.files[self.path])))
            self.end_headers()
            self.wfile.write(server.files[self.path])

        def log_message(self, *args) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.fails, server.log = {}, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def store() -> dict[str, bytes]:
    """A small Grocery Store, by path in its repository; names with a space as in the published set."""
    files = {"LICENSE": b"MIT", "dataset/.DS_Store": b"x"}
    files["dataset/classes.csv"] = b"name,id,coarse,coarse id,iconic,description\r\nKiwi,0,Kiwi,0,/i.jpg,/d.txt\r\n"
    for split in ("train", "val", "test"):
        names = [f"{split}/Fruit/Kiwi/Kiwi 00{n}.jpg" for n in range(3)]
        files[f"dataset/{split}.txt"] = "".join(f"{name}, 0, 0\n" for name in names).encode()
        for n, name in enumerate(names):
            out = io.BytesIO()
            Image.new("RGB", (16, 16), (n * 40, len(split), 0)).save(out, "JPEG")
            files[f"dataset/{name}"] = out.getvalue()
    return files


def pack(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"GroceryStoreDataset-b545/{name}", content)
    return out.getvalue()


@pytest.fixture
def shop(server, own_cache, monkeypatch):
    """Put a small Grocery Store on the server in place of the published one."""
    known = {name.removeprefix("dataset/"): content for name, content in store().items() if "dataset/" in name}
    listed = [name for name in sorted(known) if not name.startswith(("test", "."))]
    lines = "".join(f"{hashlib.sha256(known[name]).hexdigest()}  {name}\n" for name in listed)
    small = replace(
        fetch.ARCHIVES["grocery_store"],
        url=f"{server.url}/archive.zip",
        sha256=hashlib.sha256(lines.encode()).hexdigest(),
        complete=lambda root: (load("grocery_store", root).table["split"] == "test").sum() == 3,
    )
    monkeypatch.setitem(fetch.ARCHIVES, "grocery_store", small)
    server.files["/archive.zip"] = pack(store())


def test_a_data_set_arrives_once(server, shop, tmp_path, capsys):
    for _ in range(2):
        root = fetch.fetch("grocery_store", tmp_path / "data")
    assert server.log == ["/archive.zip"] and not list((tmp_path / "cache").rglob("*.zip"))
    data = load("grocery_store", root)
    assert data.table["split"].value_counts().to_dict() == {"train": 3, "val": 3, "test": 3}
    assert not (root / "LICENSE").exists() and not (root / ".DS_Store").exists()
    said = capsys.readouterr().out
    assert "MIT" in said and "MB" in said and "archive.zip" in said


def test_a_busy_server_is_tried_again_and_a_lacking_one_is_one_line(server, shop, tmp_path):
    server.fails = [503, 503]
    fetch.fetch("grocery_store", tmp_path / "data")
    server.files.clear()
    with pytest.raises(DataError, match=r"archive\.zip: cannot be downloaded .*run the same command again") as error:
        fetch.fetch("grocery_store", tmp_path / "other")
    assert "\n" not in str(error.value) and not list((tmp_path / "cache" / "downloads").iterdir())


def test_a_damaged_or_missing_photo_is_fetched_again(server, shop, tmp_path):
    root = fetch.fetch("grocery_store", tmp_path / "data")
    (root / "train/Fruit/Kiwi/Kiwi 001.jpg").write_bytes(b"damaged")
    (root / "test/Fruit/Kiwi/Kiwi 002.jpg").unlink()
    fetch.fetch("grocery_store", root)
    assert len(load("grocery_store", root)) == 9 and len(server.log) == 2


@pytest.mark.parametrize("name", ["train/Fruit/Kiwi/Kiwi 001.jpg", "val.txt", "test.txt"])
def test_another_data_set_is_refused(server, shop, tmp_path, name):
    files = store()
    files[f"dataset/{name}"] = files["dataset/val/Fruit/Kiwi/Kiwi 000.jpg"] if name.endswith("jpg") else b""
    server.files["/archive.zip"] = pack(files)
    with pytest.raises(DataError, match="not the published files of grocery_store"):
        fetch.fetch("grocery_store", tmp_path / "data")


def test_a_zip_that_is_cut_or_would_fill_the_disk_is_refused_before_it_is_unpacked(server, shop, tmp_path, monkeypatch):
    whole = server.files["/archive.zip"]
    for content, most, says in ((whole[:500], 1 << 32, "not a whole zip"), (whole, 1000, r"unpacks to [\d,]+ bytes")):
        server.files["/archive.zip"] = content
        monkeypatch.setattr(fetch, "UNPACKED", most)
        with pytest.raises(DataError, match=says):
            fetch.fetch("grocery_store", tmp_path / "data")
        assert not list((tmp_path / "data").rglob("*.jpg"))


def test_paths_of_a_zip_stay_in_the_folder(server, shop, tmp_path):
    server.files["/archive.zip"] = pack(store() | {"dataset/../../out.txt": b"x", "dataset/a/../../../out.txt": b"x"})
    fetch.fetch("grocery_store", tmp_path / "data" / "in")
    assert not list(tmp_path.rglob("out.txt"))


def test_grozi_says_where_to_get_it(tmp_path):
    with pytest.raises(UsageError, match=r"grozi\.calit2\.net.*inVitro"):
        fetch.fetch("grozi120", tmp_path)
    with pytest.raises(UsageError, match="did you mean 'grozi120'"):
        fetch.fetch("grozi12", tmp_path)


@pytest.mark.parametrize("name", ["grocery_store", "finegrainocr"])
def test_the_real_photos_are_those_of_the_pinned_commit(real_data, name):
    archive, root = fetch.ARCHIVES[name], real_data(name)
    assert fetch.list_sha256(root, archive.files(root)) == archive.sha256
