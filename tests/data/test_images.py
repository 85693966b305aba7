"""Odd photos and masks simply work, dangerous ones are refused before they are decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from retailkit.config import DataError
from retailkit.data import images
from retailkit.data.images import image_size, read_image, read_mask


def gradient(height: int = 6, width: int = 9) -> np.ndarray:
    """An image without symmetry: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 20, y * 30, np.full_like(x, 40)], axis=-1).astype(np.uint8)


def png(width: int, height: int, bits: int = 8, rows: bytes | None = None) -> bytes:
    """A PNG written by hand: of 16 bits, which Pillow only reads, or without the pixels of which it tells."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    data = chunk(b"IDAT", b"" if rows is None else zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_goes_onto_white(tmp_path, mode):
    clear, black = {"RGBA": ((9, 9, 9, 0), (0, 0, 0, 255)), "LA": ((9, 0), (0, 255)), "P": (1, 0)}[mode]
    picture = Image.new(mode, (4, 4), clear)
    picture.paste(black, (0, 0, 2, 4))
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.save(tmp_path / "x.png", **({"transparency": 1} if mode == "P" else {}))
    pixels = read_image(tmp_path / "x.png")
    assert (pixels[:, :2] == 0).all() and (pixels[:, 2:] == 255).all()


def test_sixteen_bits_become_eight(tmp_path):
    wide = (np.arange(54).reshape(6, 9) * 1200).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "gray.png")
    assert np.abs(read_image(tmp_path / "gray.png")[..., 0].astype(float) - wide / 257).max() <= 1
    rows = b"".join(b"\0" + row.tobytes() for row in gradient().astype(">u2") * 257)
    np.testing.assert_array_equal(read_image(io.BytesIO(png(9, 6, 16, rows))), gradient())


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_may_reach_1_or_more(tmp_path, white):
    grey = gradient()[..., 0].astype(np.float32)
    grey[0, 0] = 255
    Image.fromarray(grey / 255 * white).save(tmp_path / "x.tif")
    assert np.abs(read_image(tmp_path / "x.tif")[..., 0].astype(float) - grey).max() <= 1


@pytest.mark.parametrize("kind", ["cut-out on black", "opaque"])
def test_masks_are_read_as_their_makers_mean_them(tmp_path, kind):
    product = np.arange(54).reshape(6, 9) % 9 < 4
    grey = Image.fromarray(product.astype(np.uint8) * 255)
    mask = (grey if kind == "opaque" else Image.new("RGB", grey.size)).convert("RGBA")
    mask.putalpha(255 if kind == "opaque" else grey)
    mask.save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", product.shape), product)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_stands_upright(tmp_path, orientation):
    upright = gradient()
    wide = [upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1]]  # how a camera stores the upright picture
    tall = [upright.swapaxes(0, 1), np.rot90(upright), upright[::-1, ::-1].swapaxes(0, 1), np.rot90(upright, -1)]
    stored = [*wide, *tall][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), gradient())


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_the_size_is_that_of_the_upright_image(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / f"x.{suffix}", exif=exif)
    assert image_size(tmp_path / f"x.{suffix}") == (20, 30) == read_image(tmp_path / f"x.{suffix}").shape[1::-1]


def exif_block(kind: int, count: int, value: bytes, orientation: int = 6) -> bytes:
    """Return an EXIF block with an orientation and a tag 0x011A (resolution) of the given kind and bytes."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<HHI", 0x011A, kind, count)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + value


@pytest.mark.parametrize(
    "block",
    [
        exif_block(5, 1, struct.pack("<I4xiI", 38, 1, 0)),  # a rational with the denominator 0
        exif_block(10, 1, struct.pack("<I4xii", 38, 1, -3)),
        exif_block(11, 1, struct.pack("<f4x", float("nan"))),
        exif_block(5, 1, struct.pack("<I4x", 60000)),  # an offset outside
        exif_block(3, 900, struct.pack("<I4x", 38)),
    ],
)
def test_broken_exif_stopped_everything(tmp_path, block):
    """The pixels are sound, and the orientation can still be read."""
    Image.fromarray(gradient(16, 24)).save(tmp_path / "x.png")
    plain = (tmp_path / "x.png").read_bytes()
    Image.fromarray(gradient(16, 24)).save(tmp_path / "x.png", exif=block)
    assert (tmp_path / "x.png").read_bytes() != plain
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(gradient(16, 24), -1))


def test_a_phones_photo_with_two_images_is_read(tmp_path):
    pair = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    pair[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=pair[1:])
    assert read_image(tmp_path / "x.jpg")[5, 5, 0] > 200


def test_a_jpg_that_is_eps_starts_no_ghostscript(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    Image.new("RGB", (20, 20)).save(tmp_path / "x.jpg", "EPS")
    with pytest.raises(DataError, match=r"x\.jpg: not an image that can be read"):
        read_image(tmp_path / "x.jpg")


HEADERS = [(12_000, 12_000, "12000 x 12000 pixels are too many"), (60_000, 40_000, "too many pixels"),
           (65_500, 700, "too many"), (1, 16_000, "too narrow"), (0, 0, "the image: ")]  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height", "says"), HEADERS)
def test_huge_and_narrow_images_are_refused_before_they_are_decoded(width, height, says):
    with pytest.raises(DataError, match=says):
        read_image(io.BytesIO(png(width, height)))


def test_every_suffix_is_of_a_known_format():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in images.SUFFIXES} <= {*images.FORMATS, "MPO"}


SHAPE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9)}"
HUGE = np.lib.format.magic(1, 0) + b"v\0" + SHAPE.ljust(118)


ARRAYS = [
    (b"no array", "not an array"),
    (HUGE, "not an array"),
    (np.zeros((20, 24, 3)), r"float64 of shape \(20, 24, 3\); replace it"),
    (np.array(["a"]), r"<U1 of shape \(1,\); replace it by numbers"),
    (np.zeros((24, 20)), "mask of 20x24 for an image of 24x20"),
    (None, "cannot be read .* or drop its row"),
]


@pytest.mark.parametrize(("content", "says"), ARRAYS)
def test_a_broken_mask_array_names_itself_and_the_cure(tmp_path, content, says):
    path = tmp_path / "m.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=rf"m\.npy: {says}"):
        read_mask(path, (20, 24))


def test_arrays_of_any_kind_of_number_are_masks(tmp_path):
    for kind in (bool, np.uint8, np.float32, np.int64):
        np.save(tmp_path / "m.npy", np.eye(4).astype(kind))
        assert np.array_equal(read_mask(tmp_path / "m.npy", (4, 4)), np.eye(4, dtype=bool))
