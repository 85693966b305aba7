"""Reading words with the real engine, and its cache."""

from __future__ import annotations

from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.ops import box_iou

from retailkit.data import ocr
from retailkit.data.images import read_image
from retailkit.data.table import DataError, ProductData, Word, make_table
from retailkit.data.text import character_errors

FONT = files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans-Bold.ttf"
LINES = (("EXTRA LEAN", 20), ("GROUND BEEF", 70), ("450 g", 120))


@pytest.fixture(autouse=True)
def cache(tmp_path, own_cache):
    return tmp_path / "cache" / "ocr"


@pytest.fixture
def engine_calls(monkeypatch):
    """Count the pictures that really go through the engine."""
    calls, read = [], ocr.read_words
    monkeypatch.setattr(ocr, "read_words", lambda image: calls.append(1) or read(image))
    return calls


def label(lines=LINES, size=(300, 180)) -> tuple[np.ndarray, list[Word]]:
    """Print lines on a yellow label; return the picture and the true words."""
    picture = Image.new("RGB", size, (250, 220, 90))
    draw, font, words = ImageDraw.Draw(picture), ImageFont.truetype(str(FONT), 28), []
    for text, y in lines:
        x = 20
        for part in text.split():
            box = draw.textbbox((x, y), part, font=font)
            draw.text((x, y), part, fill=(20, 20, 60), font=font)
            words.append(Word(part, box))
            x += draw.textlength(part + " ", font=font)
    return np.array(picture), words


def milk(text="MILK") -> np.ndarray:
    return label(((text, 20),))[0]


def make_data(tmp_path, pictures: list[np.ndarray], **columns) -> ProductData:
    rows = []
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append({"image": str(tmp_path / f"{i}.png"), "label": "a", "split": "train"})
    frame = make_table(rows).assign(**columns)
    return ProductData("mine", frame, sorted(set(frame["label"])), {})


def test_words_are_read_where_they_are_printed():
    picture, truth = label()
    words = ocr.read_words(picture)
    assert [w.text for w in words] == [w.text for w in truth]
    read, printed = (torch.tensor([word.box for word in found]) for found in (words, truth))
    assert (box_iou(read, printed).diagonal() > 0.4).all()  # lines are read taller than their letters
    assert all(0 < word.confidence <= 1 for word in words)
    assert character_errors(truth, words)[0] == 0


def test_colours_are_given_to_the_engine_in_its_order(monkeypatch):
    picture, seen = label()[0], []
    monkeypatch.setattr(ocr, "_idle", [lambda image, **options: seen.append(image) or SimpleNamespace(txts=None)])
    assert ocr.read_words(picture) == []
    np.testing.assert_array_equal(seen[0], picture[..., ::-1])  # BGR, as OpenCV reads files


@pytest.mark.parametrize("shape", [(1, 1), (8, 100)])
def test_pictures_without_text_have_no_words(shape):
    assert ocr.read_words(np.zeros((*shape, 3), dtype=np.uint8)) == []


def test_a_line_the_engine_did_not_cut_is_divided_by_characters(monkeypatch):
    quad = np.array([[0, 0], [100, 10], [100, 30], [0, 20]])
    found = SimpleNamespace(txts=["ab cdefg 1"], scores=[0.8], boxes=[quad], word_results=[[]])
    monkeypatch.setattr(ocr, "_idle", [lambda image, **options: found])
    words = ocr.read_words(np.zeros((25, 200, 3), np.uint8))
    assert [w.text for w in words] == ["ab", "cdefg", "1"]
    assert words[0].box == (0, 0, 20, 22) and words[1].box == (30, 3, 80, 25)  # clipped to the picture
    assert {w.confidence for w in words} == {0.8}


def test_add_text_fills_text_and_words_and_leaves_its_input(tmp_path):
    data = make_data(tmp_path, [label()[0], np.zeros((40, 40, 3), np.uint8)])
    read = ocr.add_text(data)
    assert read.table["text"].tolist() == ["EXTRA LEAN GROUND BEEF 450 g", ""]
    assert [len(words) for words in read.table["words"]] == [6, 0]
    assert "words" not in data.table and (data.table["text"] == "").all()
    sample = read.split("train", size=90, fit="stretch")[0]
    assert sample.text.startswith("EXTRA LEAN") and sample.words[0].box[2] < 90 * 140 / 300


def test_a_picture_is_read_once_unless_settings_or_content_change(tmp_path, engine_calls, cache, monkeypatch):
    data = make_data(tmp_path, [milk("TEA"), milk("TEA"), milk()])
    first = ocr.add_text(data)
    assert len(engine_calls) == 2  # the same content twice
    assert ocr.add_text(data).table["text"].tolist() == first.table["text"].tolist()
    assert len(engine_calls) == 2 and len(list(cache.rglob("*.json"))) == 2
    Image.fromarray(milk("SOUP")).save(data.table["image"][0])
    assert ocr.add_text(data).table["text"][0] == "SOUP" and len(engine_calls) == 3
    monkeypatch.setitem(ocr.SETTINGS, "Det.limit_side_len", 352)
    ocr.add_text(data)
    assert len(engine_calls) == 6


def test_any_number_of_threads_reads_the_same_words(tmp_path, monkeypatch):
    data, read = make_data(tmp_path, [label()[0], milk(), milk("SOUP 500 ml"), milk("TEA")]), []
    for threads in (1, 4):
        monkeypatch.setenv("RETAILKIT_CACHE", str(tmp_path / f"cache{threads}"))
        monkeypatch.setattr(ocr.os, "cpu_count", lambda threads=threads: threads)
        read.append(ocr.add_text(data).table["words"].tolist())
    assert read[0] == read[1] and all(read[0])


@pytest.mark.parametrize("change", [lambda text: "", lambda text: text.replace("MILK", "MOLK"), lambda text: "null"])
def test_a_damaged_entry_is_read_again(tmp_path, engine_calls, cache, change):
    data = make_data(tmp_path, [milk()])
    ocr.add_text(data)
    (kept,) = cache.rglob("*.json")
    kept.write_text(change(kept.read_text()))
    for calls in (2, 2):
        assert ocr.add_text(data).table["text"][0] == "MILK"
        assert len(engine_calls) == calls


def test_a_kill_loses_nothing_that_was_read(tmp_path, engine_calls):
    data = make_data(tmp_path, [milk(), milk("SOUP")])
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"row 1 of 'mine': .*1\.png: not an image that can be read; replace"):
        ocr.add_text(data)
    assert len(engine_calls) == 1
    ocr.add_text(data.select(np.array([0])))
    assert len(engine_calls) == 1
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"row 1 of 'mine': .*1\.png: .*correct the path"):
        ocr.add_text(data)


def test_a_limit_is_spread_over_classes_and_splits(tmp_path, engine_calls):
    pictures = [milk(f"MILK {i}") for i in range(8)]
    columns = {"label": list("aaaabbbb"), "split": ["train", "train", "train", "test"] * 2}
    read = ocr.add_text(make_data(tmp_path, pictures, **columns), limit=4)
    assert read.table["text"].ne("").tolist() == [True, False, False, True] * 2
    assert len(engine_calls) == 4


def test_words_that_come_with_a_data_set_are_kept_without_barcodes(tmp_path, engine_calls):
    """`add_text` used to empty the words of rows with a text of their own."""
    data = make_data(tmp_path, [milk()] * 2, text=["LEAN 4006381333931", ""])
    data.table["words"] = [[Word("LEAN", (1, 2, 3, 4)), Word("4006381333931", (5, 6, 7, 8))], []]
    read = ocr.add_text(data).table
    assert read["text"].tolist() == ["LEAN", "MILK"] and len(engine_calls) == 1
    assert [[w.text for w in words] for words in read["words"]] == [["LEAN"], ["MILK"]]


def test_barcodes_never_reach_text_or_words(tmp_path):
    picture = label((("MILK", 20), ("0 60383 05933 0", 70), ("500 ml", 120)))[0]
    assert "60383" in " ".join(w.text for w in ocr.read_words(picture)), "the engine does read it"
    read = ocr.add_text(make_data(tmp_path, [picture])).table.iloc[0]
    for text in (read["text"], " ".join(word.text for word in read["words"])):
        assert "MILK" in text and "500" in text and "60383" not in text and "05933" not in text


@pytest.mark.parametrize("number", [1, 2])
def test_words_on_a_real_pack_are_read(real_data, number):
    name = "Arla-Lactose-Medium-Fat-Milk"
    words = ocr.read_words(read_image(real_data("grocery_store") / f"train/Packages/Milk/{name}/{name}_00{number}.jpg"))
    assert {"Arla", "LAKTOSFRI"} <= {word.text for word in words}
