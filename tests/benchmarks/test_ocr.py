"""How fast words are read."""

import pytest

from retailkit import data
from retailkit.data import ocr
from retailkit.data.images import read_image
from retailkit.data.text import redact_words


@pytest.mark.benchmark
def test_ocr(tmp_path, compare, quick, monkeypatch):
    shop = data.load("synthetic", tmp_path, per_class=(1, 0, 0), families=2 if quick else 6)
    ocr.read_words(read_image(shop.table["image"].iloc[0]))  # builds the engine
    caches = iter(range(100))

    def one_by_one():
        return [redact_words(ocr.read_words(read_image(path))) for path in shop.table["image"]]

    def in_threads():
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{next(caches)}"))
        return list(ocr.add_text(shop).table["words"])

    def again():
        return list(ocr.add_text(shop).table["words"])

    def differences(a, b):
        return sum(x != y for x, y in zip(a, b, strict=True))

    count = len(shop)
    compare("ocr", f"{count} new images", "one by one", one_by_one, in_threads, differences, repeat=1 if quick else 3)
    ratio = compare("ocr", f"{count} known images", "one by one", one_by_one, again, differences, repeat=1)
    assert ratio > 20
