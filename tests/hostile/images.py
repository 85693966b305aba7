"""Images made by code: bytes or a way to make a file, and what has to come of it.

A tuple of bytes says that the image is read, and its size and its colour at the top left; a text says that it is
refused, and a part of the reason.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

RED, WHITE = (200, 60, 40), (255, 255, 255)
SIDE = 24


def photo(kind="PNG", mode="RGB", colour=RED, size=(SIDE, SIDE), **options) -> bytes:
    """An image of one colour."""
    return saved(Image.new("RGB", size, colour).convert(mode), kind, **options)


def saved(image, kind, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def of_levels(array, kind="PNG", **options) -> bytes:
    return saved(Image.fromarray(array), kind, **options)


def animation(kind, side=SIDE) -> bytes:
    """An animation whose first frame is red."""
    rest = [Image.new("RGB", (side, side), (0, 0, n)) for n in range(40, 240, 40)]
    return photo(kind, size=(side, side), save_all=True, append_images=rest, duration=20)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, *more: bytes, pixels=b"\0", depth=8, colour=2) -> bytes:
    """A PNG that says it is of a size, whatever its pixels are."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join([chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(pixels, 9)), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def bomb(path: Path, name: bytes, power: int) -> None:
    """A small PNG with a chunk of text or of a profile that unpacks to 2**power bytes."""
    packed = zlib.compress(bytes(1 << power), 9)
    path.write_bytes(png(8, 8, chunk(name, b"a\0\0" + packed), pixels=bytes(200)))


def jpeg_size(content: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def scan_bomb() -> bytes:
    """A progressive JPEG whose last scan is repeated thousands of times."""
    content = photo("JPEG", size=(256, 256), progressive=True)
    at = content.rindex(b"\xff\xda")
    return content[:at] + content[at:-2] * 4000 + b"\xff\xd9"


def tiff(*tags: tuple[int, int, int, int], after: int = 0) -> bytes:
    """A TIFF of one directory with the given tags (number, type, count, value), and the place of the next directory."""
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", after) + b"\x20" * 64


def tiff_of(width=8, height=8, offset=8, size=64, **more) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    return tiff(*tags, (273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, size), **more)


def turned(orientation, kind="JPEG", side=SIDE) -> bytes:
    """A wide image, red at the left and white at the right, to be turned as its EXIF block says."""
    pixels = np.full((side, 2 * side, 3), 255, np.uint8)
    pixels[:, :side] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    return of_levels(pixels, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


def linked(target):
    return lambda path: path.symlink_to(target)


def outside(path: Path) -> None:
    """A link to a photo that lies elsewhere, as data folders on shared disks have."""
    path.parents[2].joinpath("elsewhere.png").write_bytes(photo())
    path.symlink_to("../../elsewhere.png")


GREY16 = np.full((SIDE, SIDE), 40_000, np.uint16)
UPRIGHT, LYING = (SIDE, 2 * SIDE), (2 * SIDE, SIDE)
NOT_ONE, DECODED, MANY, NARROW = "not an image that can be read", "cannot be decoded", "too many", "too narrow"
FILE, READ = "not a regular file", "cannot be read"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG, PNG, GIF = photo("JPEG", quality=95), photo(), photo("GIF")

IMAGES = {
    # Kinds of pixels.
    "RGB.png": (PNG, RED),
    "grey.png": (photo(mode="L", colour=(90, 90, 90)), (90, 90, 90)),
    "grey and alpha.png": (saved(Image.new("LA", (SIDE, SIDE), (0, 0)), "PNG"), WHITE),
    "transparent.png": (saved(Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)), "PNG"), WHITE),
    "transparent palette.gif": (saved(Image.new("P", (SIDE, SIDE), 0), "GIF", transparency=0), WHITE),
    "palette.png": (photo(mode="P", colour=(255, 0, 0)), (255, 0, 0)),
    "1 bit.png": (saved(Image.new("1", (SIDE, SIDE), 1), "PNG"), WHITE),
    "16 bits.png": (of_levels(GREY16), (155, 155, 155)),
    "16 bits.ppm": (b"P5 24 24 65535\n" + GREY16.astype(">u2").tobytes(), (155, 155, 155)),
    "32 bits.tif": (of_levels(GREY16.astype(np.int32), "TIFF"), (155, 155, 155)),
    "float to 1.tif": (of_levels(np.full((SIDE, SIDE), 0.5, np.float32), "TIFF"), (127, 127, 127)),
    "float of NaN.tif": (of_levels(np.full((SIDE, SIDE), np.nan, np.float32), "TIFF"), (0, 0, 0)),
    "float infinite.tif": (of_levels(np.full((SIDE, SIDE), np.inf, np.float32), "TIFF"), WHITE),
    "CMYK.jpg": (photo("JPEG", "CMYK", (255, 255, 255)), WHITE),
    "CMYK.tif": (photo("TIFF", "CMYK", (255, 255, 255)), WHITE),
    "YCbCr.tif": (photo("TIFF", "YCbCr", (255, 255, 255)), WHITE),
    "colour profile.jpg": (photo("JPEG", icc_profile=SRGB, quality=95), RED),
    "broken colour profile.png": (photo(icc_profile=b"no profile"), RED),
    # More than one picture.
    "animated.gif": (animation("GIF"), RED),
    "animated.png": (animation("PNG"), RED),
    "animated.webp": (saved(Image.new("RGB", (SIDE, SIDE), WHITE), "WEBP", save_all=True, lossless=True,
                            append_images=[Image.new("RGB", (SIDE, SIDE))]), WHITE),
    "pages.tif": (animation("TIFF"), RED),
    # EXIF.
    **{f"EXIF turn {n}.jpg": (turned(n), (UPRIGHT if n >= 5 else LYING, RED if n in (1, 4, 5, 6) else WHITE))
       for n in range(1, 9)},
    "EXIF turn 6.png": (turned(6, "PNG"), (UPRIGHT, RED)),
    "EXIF turn 6.tif": (turned(6, "TIFF"), (UPRIGHT, RED)),
    "EXIF turn 6.webp": (turned(6, "WEBP"), (UPRIGHT, RED)),
    "EXIF turn 99.jpg": (turned(99), (LYING, RED)),
    "EXIF broken.jpg": (photo("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95), RED),
    "EXIF of a loop.jpg": (photo("JPEG", exif=b"Exif\0\0" + tiff((34665, 4, 1, 8), after=8), quality=95), RED),
    # Another name than content.
    "PNG called.jpg": (PNG, RED),
    "TIFF called.png": (photo("TIFF"), RED),
    "GIF called.webp": (photo("GIF", colour=(255, 0, 0)), (255, 0, 0)),
    "upper case.JPG": (JPEG, RED),
    "text.jpg": (b"no image", NOT_ONE),
    "page.jpg": (b"<!doctype html><img src=x onerror=alert(1)>", NOT_ONE),
    "PostScript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch made) run\n", NOT_ONE),
    "SVG.png": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", NOT_ONE),
    "PDF.jpg": (b"%PDF-1.7\n", NOT_ONE),
    "HEIC.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", NOT_ONE),
    "icon.png": (photo("ICO"), NOT_ONE),
    "JPEG 2000.jpg": (photo("JPEG2000"), NOT_ONE),
    "DDS.png": (photo("DDS"), NOT_ONE),
    "pickle.png": (b"\x80\x04cos\nsystem\n(S'touch made'\ntR.", NOT_ONE),
    # Two kinds of file in one.
    "PNG and zip.png": (PNG + zipped("evil.py", b"x"), RED),
    "JPEG and page.jpg": (JPEG + b"<script>alert(1)</script>", RED),
    "GIF and script.gif": (photo("GIF", colour=(255, 0, 0), comment=b"*/=alert(1);/*"), (255, 0, 0)),
    "zip and PNG.png": (zipped("a.png", PNG), NOT_ONE),
    "mask array.png": (b"\x93NUMPY\x01\0v\0{'descr':'|O'}", NOT_ONE),
    # Cut off or damaged.
    "empty.png": (b"", NOT_ONE),
    "one byte.jpg": (b"\xff", NOT_ONE),
    "header alone.png": (PNG[:33], NOT_ONE),
    "half.jpg": (photo("JPEG", size=(200, 200))[:500], DECODED),
    "half.png": (of_levels(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))[:300], DECODED),
    "half.webp": (photo("WEBP")[:-20], ("", NOT_ONE, DECODED)),
    "half.tif": (photo("TIFF")[:600], ("", NOT_ONE, DECODED)),
    "half.bmp": (photo("BMP")[:400], DECODED),
    "half.gif": (animation("GIF")[:30], ("", NOT_ONE, DECODED)),
    "half.ppm": (photo("PPM")[:400], DECODED),
    "wrong checksum.png": (PNG.replace(b"IDAT", b"IDAT\1", 1), DECODED),
    "unknown compression.tif": (tiff((256, 4, 1, 8), (257, 4, 1, 8), (259, 3, 1, 9999)), ("", NOT_ONE, DECODED)),
    # Sizes that are too large, and lies about them.
    "60000 x 60000.png": (png(60_000, 60_000), "too many pixels"),
    "65500 x 1.png": (png(65_500, 1), MANY),
    "20000 x 300.png": (png(20_000, 300), MANY),
    "1 x 8000.png": (png(1, 8000), NARROW),
    "0 x 0.png": (png(0, 0), ("", NOT_ONE, DECODED, NARROW)),
    "2**31 wide.png": (png(2**31 - 1, 1), ("too many", "too narrow")),
    "65535 x 65535.jpg": (jpeg_size(JPEG, 65_535, 65_535), "too many pixels"),
    "0 x 24.jpg": (jpeg_size(JPEG, 0, 24), ("", NOT_ONE, DECODED)),
    "more rows than there are.jpg": (jpeg_size(JPEG, SIDE, 900), ("", DECODED)),
    "2**31 wide.bmp": (photo("BMP")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + photo("BMP")[26:], "too many"),
    "top down.bmp": (photo("BMP")[:22] + struct.pack("<i", -SIDE) + photo("BMP")[26:], RED),
    "65535 x 65535.gif": (GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:], "too many"),
    "10**9 wide.ppm": (b"P6 1000000000 1000000000 255\n" + bytes(99), ("too many", DECODED)),
    "number without end.ppm": (b"P6 " + b"9" * 100_000 + b" 1 255\n", ("", NOT_ONE, DECODED)),
    "comment without end.ppm": (b"P6\n#" + b"x" * 1_000_000, ("", NOT_ONE, DECODED)),
    "2**31 wide.tif": (tiff_of(2**31 - 1, 2**31 - 1), "too many"),
    "strip outside.tif": (tiff_of(offset=2**31, size=2**31), DECODED),
    "4 GB of strips.tif": (tiff_of(size=2**32 - 1), ("", DECODED)),
    "loop of directories.tif": (tiff_of(after=8), ((8, 8), (9, 9, 9))),
    "tag of 4 GB.tif": (tiff((256, 4, 2**32 - 1, 8), (257, 4, 1, 8)), ("", NOT_ONE, DECODED)),
    # Little content that becomes much.
    "bomb of pixels.png": (png(8000, 7900, pixels=bytes(7900 * 24_001)), ((8000, 7900), (0, 0, 0))),
    "bomb of text.png": (lambda path: bomb(path, b"zTXt", 28), DECODED),
    "bomb of a profile.png": (lambda path: bomb(path, b"iCCP", 27), ("", DECODED)),
    "bomb of scans.jpg": (scan_bomb(), ((256, 256), RED)),
    # What is no file at all.
    "folder.png": (Path.mkdir, None),
    "pipe.png": (os.mkfifo, FILE),
    "device.png": (linked("/dev/zero"), FILE),
    "random numbers.png": (linked("/dev/urandom"), FILE),
    "link to itself.png": (lambda path: path.symlink_to(path), READ),
    "link to nowhere.png": (linked("nowhere"), READ),
    "link to a photo elsewhere.png": (outside, RED),
    "link to passwords.png": (linked("/etc/passwd"), NOT_ONE),
}  # fmt: skip
HEAVY = {"bomb of pixels.png", "bomb of scans.jpg", "bomb of text.png", "bomb of a profile.png"}
