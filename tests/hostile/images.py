"""Images made by code, as files of a data set and as uploads of the tool.

What is read of an image is its size and its colour at the top left, or that colour alone.
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

from hostile import door, put

RED, WHITE = (200, 60, 40), (255, 255, 255)
SIDE = 24


def photo(kind="PNG", mode="RGB", colour=RED, size=(SIDE, SIDE), **options) -> bytes:
    """An image of one colour."""
    return saved(Image.new("RGB", size, colour).convert(mode), kind, **options)


def saved(image, kind, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def animation(kind, side=SIDE, **options) -> bytes:
    """An animation, or pages, the first of which is red."""
    rest = [Image.new("RGB", (side, side), (0, 0, n)) for n in range(40, 240, 40)]
    return photo(kind, size=(side, side), save_all=True, append_images=rest, duration=20, **options)


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
    return saved(Image.fromarray(pixels), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def zipped(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def linked(target):
    return lambda path: path.symlink_to(target)


def outside(path: Path) -> None:
    """A link to a photo that lies elsewhere, as data folders on shared disks have."""
    path.parents[2].joinpath("elsewhere.png").write_bytes(photo())
    path.symlink_to("../../elsewhere.png")


UPRIGHT, LYING, OURS = (SIDE, 2 * SIDE), (2 * SIDE, SIDE), (SIDE, SIDE)
NOT_ONE, DECODED, MANY, NARROW = "not an image that can be read", "cannot be decoded", "too many", "too narrow"
EITHER = ("", NOT_ONE, DECODED)  # a library may learn to read it
FILE, READ = "not a regular file", "cannot be read"
GREY16 = np.full(OURS, 40_000, np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
JPEG, PNG, GIF, BMP = photo("JPEG", quality=95), photo(), photo("GIF"), photo("BMP")
FORMATS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM"}
NO_IMAGES = {
    "empty": b"",
    "one byte": b"\xff",
    "header alone": PNG[:33],
    "text": b"no image",
    "page": b"<!doctype html><img src=x onerror=alert(1)>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch made) run\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PDF": b"%PDF-1.7\n",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "icon": photo("ICO"),
    "JPEG 2000": photo("JPEG2000"),
    "DDS": photo("DDS"),
    "pickle": b"\x80\x04cos\nsystem\n(S'touch made'\ntR.",
    "mask array": b"\x93NUMPY\x01\0v\0{'descr':'|O'}",
    "zip and PNG": zipped({"a.png": PNG}),
}

IMAGES = {
    # Kinds of pixels.
    "RGB.png": (PNG, RED),
    "grey.png": (photo(mode="L", colour=(90, 90, 90)), (90, 90, 90)),
    "grey and alpha.png": (saved(Image.new("LA", OURS, (0, 0)), "PNG"), WHITE),
    "transparent.png": (saved(Image.new("RGBA", OURS, (0, 0, 0, 0)), "PNG"), WHITE),
    "transparent palette.gif": (saved(Image.new("P", OURS, 0), "GIF", transparency=0), WHITE),
    "palette.png": (photo(mode="P", colour=(255, 0, 0)), (255, 0, 0)),
    "1 bit.png": (saved(Image.new("1", OURS, 1), "PNG"), WHITE),
    "16 bits.png": (saved(Image.fromarray(GREY16), "PNG"), (155, 155, 155)),
    "16 bits.ppm": (b"P5 24 24 65535\n" + GREY16.astype(">u2").tobytes(), (155, 155, 155)),
    "32 bits.tif": (saved(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), (155, 155, 155)),
    **{f"float of {value}.tif": (saved(Image.fromarray(np.full(OURS, value, np.float32)), "TIFF"), (level,) * 3)
       for value, level in [(0.5, 127), (np.nan, 0), (np.inf, 255)]},
    **{f"{mode}.{suffix}": (photo(FORMATS[suffix], mode, WHITE), WHITE)
       for mode, suffix in [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif")]},
    "colour profile.jpg": (photo("JPEG", icc_profile=SRGB, quality=95), RED),
    "broken colour profile.png": (photo(icc_profile=b"no profile"), RED),
    # More than one picture.
    **{f"animated.{suffix}": (animation(FORMATS[suffix]), RED) for suffix in ("gif", "png", "tif")},
    "animated.webp": (animation("WEBP", lossless=True), RED),
    # EXIF.
    **{f"EXIF turn {n}.{suffix}": (turned(n, FORMATS[suffix]), (UPRIGHT if n in (5, 6, 7, 8) else LYING,
                                                                WHITE if n in (2, 3, 7, 8) else RED))
       for n, suffix in [*((n, "jpg") for n in (*range(1, 9), 99)), (6, "png"), (6, "tif"), (6, "webp")]},
    "EXIF broken.jpg": (photo("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95), RED),
    "EXIF of a loop.jpg": (photo("JPEG", exif=b"Exif\0\0" + tiff((34665, 4, 1, 8), after=8), quality=95), RED),
    # Another name than content, and two kinds of file in one.
    "PNG called.jpg": (PNG, RED),
    "TIFF called.png": (photo("TIFF"), RED),
    "GIF called.webp": (photo("GIF", colour=(255, 0, 0)), (255, 0, 0)),
    "upper case.JPG": (JPEG, RED),
    **{f"{name}.png": (content, NOT_ONE) for name, content in NO_IMAGES.items()},
    "PNG and zip.png": (PNG + zipped({"evil.py": b"x"}), RED),
    "JPEG and page.jpg": (JPEG + b"<script>alert(1)</script>", RED),
    "GIF and script.gif": (photo("GIF", colour=(255, 0, 0), comment=b"*/=alert(1);/*"), (255, 0, 0)),
    # Cut off or damaged; see also `test_faults`.
    **{f"half.{suffix}": (photo(kind, size=(99, 99))[:60], (NOT_ONE, DECODED)) for suffix, kind in FORMATS.items()},
    "half of many pixels.jpg": (photo("JPEG", size=(200, 200))[:500], DECODED),
    "wrong checksum.png": (PNG.replace(b"IDAT", b"IDAT\1", 1), DECODED),
    "unknown compression.tif": (tiff((256, 4, 1, 8), (257, 4, 1, 8), (259, 3, 1, 9999)), EITHER),
    # Sizes that are too large, and lies about them.
    **{f"{width} x {height}.png": (png(width, height), says) for width, height, says in [
        (60_000, 60_000, "too many pixels"), (65_500, 1, MANY), (20_000, 300, MANY), (1, 8000, NARROW),
        (0, 0, (*EITHER, NARROW)), (2**31 - 1, 1, (MANY, NARROW))]},
    "65535 x 65535.jpg": (jpeg_size(JPEG, 65_535, 65_535), "too many pixels"),
    "0 x 24.jpg": (jpeg_size(JPEG, 0, 24), EITHER),
    "more rows than there are.jpg": (jpeg_size(JPEG, SIDE, 900), ("", DECODED)),
    "2**31 wide.bmp": (BMP[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + BMP[26:], MANY),
    "top down.bmp": (BMP[:22] + struct.pack("<i", -SIDE) + BMP[26:], RED),
    "65535 x 65535.gif": (GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:], MANY),
    "10**9 wide.ppm": (b"P6 1000000000 1000000000 255\n" + bytes(99), (MANY, DECODED)),
    "number without end.ppm": (b"P6 " + b"9" * 100_000 + b" 1 255\n", EITHER),
    "comment without end.ppm": (b"P6\n#" + b"x" * 1_000_000, EITHER),
    "2**31 wide.tif": (tiff_of(2**31 - 1, 2**31 - 1), MANY),
    "strip outside.tif": (tiff_of(offset=2**31, size=2**31), DECODED),
    "4 GB of strips.tif": (tiff_of(size=2**32 - 1), ("", DECODED)),
    "loop of directories.tif": (tiff_of(after=8), ((8, 8), (9, 9, 9))),
    "tag of 4 GB.tif": (tiff((256, 4, 2**32 - 1, 8), (257, 4, 1, 8)), EITHER),
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


@door("photo", IMAGES, {name for name in IMAGES if name.startswith("bomb")})
def image(shop, case) -> str:
    from retailkit.data.images import read_image

    path = put(shop.folder / "photos" / "milk" / case.name, case.given)
    said = shop.cli("check --root photos", names=case.name)
    if case.value is None:
        return said.splitlines()[0]
    size, colour = case.value if isinstance(case.value[0], tuple) else (OURS, case.value)
    pixels = read_image(path)
    assert pixels.shape[1::-1] == size and abs(pixels[0, 0].astype(int) - colour).max() <= 3, pixels[0, 0]
    return f"{size[0]} x {size[1]} pixels, {tuple(map(int, colour))} at the top left"


# What a page sends to the tool, which need not be ours: a message, and contents. What is read is height and width.
A = {"name": "a.png"}
UPLOADS = {
    "photo": ((A, [photo(size=(40, 50))]), [50, 40]),
    "photo turned by its EXIF block": ((A, [turned(6, side=40)]), [80, 40]),
    "large photo": ((A, [photo("JPEG", size=(4096, 1024))]), [512, 2048]),
    "animation": ((A, [animation("GIF", 40)]), [40, 40]),
    "no content": ((A, []), "the file is empty"),
    "two contents": ((A, [photo(size=(40, 50)), b"x"]), [50, 40]),
    "9 MB and a byte": ((A, [bytes(9_000_001)]), "more than 9 MB"),
    "60000 x 60000": ((A, [png(60_000, 60_000)]), "too many pixels"),
    "8000 x 7900": ((A, [png(8000, 7900)]), "more than 60 megapixels"),
    "16 x 16": ((A, [photo(size=(16, 16))]), "too few"),
    "65500 x 1": ((A, [png(65_500, 1)]), MANY),
    "cut off": ((A, [PNG[:60]]), (DECODED, "not an image")),
    **{name: ((A, [content]), "not an image" if content else "is empty") for name, content in NO_IMAGES.items()},
    "bomb of pixels": ((A, [png(7000, 7000, pixels=bytes(7000 * 21_001))]), [2048, 2048]),
    "name of a path": (({"name": "../../../etc/a.png"}, [b"x"]), "../../../etc/a.png: not an image"),
    "name of a page": (({"name": "<img src=x>"}, [b"x"]), "<img src=x>: not an image"),
    "name of 1 MB": (({"name": "n" * 10**6}, [b"x"]), "not an image"),
    "no name": (({}, [b"x"]), "photo: not an image"),
    "name of a number": (({"name": 7}, [b"x"]), "7: not an image"),
    "a text in place of a message": (("x", [b"x"]), "photo: not an image"),
}


@door("upload", UPLOADS, {"bomb of pixels"})
def upload(shop, case) -> str:
    from retailkit.config import UserError
    from retailkit.widgets.model import decode
    from retailkit.widgets.picture import LONGEST, Upload

    found, button = [], Upload(megabytes=9)

    def act(content: bytes, called: str) -> None:
        try:
            found.append(decode(content, called))
        except UserError as error:  # the tool shows it
            found.append(error)

    shop.patch.setattr(button, "send", found.append)
    button.on_upload(act)
    message, buffers = case.given
    button._handle_custom_msg(message, [memoryview(buffer) for buffer in buffers])
    read, answer = found
    assert len(answer["done"]) <= LONGEST  # the page is told in any case
    if isinstance(read, UserError):
        raise read
    assert [*read.shape[:2]] == case.value, read.shape
    return f"{read.shape[1]} x {read.shape[0]} pixels"
