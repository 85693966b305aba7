"""How fast words are read."""

import itertools

import pytest

from retailkit import data
from retailkit.data import ocr
from retailkit.data.images import read_image
from retailkit.data.text import redact_words


@pytest.mark.benchmark
def test_ocr(tmp_path, compare, quick, monkeypatch):
    shop = data.load("synthetic", tmp_path, per_class=(1, 0, 0), families=2 if quick else 6)
    ocr.read_words(read_image(shop.table["image"].iloc[0]))  # builds the engine
    caches = itertools.count()

    def one_by_one():
        return [redact_words(ocr.read_words(read_image(path))) for path in shop.table["image"]]

    def in_threads():
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{next(caches)}"))
        return again()

    def again():
        return list(ocr.add_text(shop).table["words"])

    compare("ocr", f"{len(shop)} new images", "one by one", one_by_one, in_threads)
    assert compare("ocr", f"{len(shop)} known images", "one by one", one_by_one, again, repeat=1) > 20
