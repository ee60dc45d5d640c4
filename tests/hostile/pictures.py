"""Pictures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin
from preparing import png_header

from hostile.table import EVIL, RUN_CODE, Accepted, Make, Refused, kinds


def image(mode: str = "RGB", side: int = 40) -> Image.Image:
    noise = Image.effect_noise((side, side), 90)
    return (
        noise.convert("RGB").convert(mode) if mode != "I;16" else noise.convert("I").convert(mode)
    )


def saved(picture: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()


def picture(data: bytes | Callable[[], bytes]) -> Make:
    return lambda folder: (folder / "picture").write_bytes(
        data if isinstance(data, bytes) else data()
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def with_chunks(*chunks: bytes) -> bytes:
    """A good PNG with more chunks behind its header."""
    data = saved(image(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def many_texts() -> bytes:
    body = zlib.compress(bytes(2**20), 9)
    return with_chunks(*(chunk(b"zTXt", b"k%d\0\0" % i + body) for i in range(200)))


def color_profile() -> bytes:
    return with_chunks(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(100 * 2**20), 9)))


def flat(name: str, side: int, mode: str = "RGB", **options: Any) -> Callable[[], bytes]:
    """A picture of one colour: few bytes, many pixels."""
    return lambda: saved(Image.new(mode, (side, side)), name, **options)


def many_parts() -> bytes:
    """Pixels in 100,000 parts, of which nearly all say that nothing comes."""
    last = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    lines = bytes(2 * (1 + 2 * 3))
    nothing = b"\0\0\0\xff\xff"
    stream = b"\x78\x9c" + nothing * 40_000 + last.compress(lines) + last.flush()
    stream += struct.pack(">I", zlib.adler32(lines))
    parts = [chunk(b"IDAT", stream[i : i + 2]) for i in range(0, len(stream), 2)]
    header = chunk(b"IHDR", struct.pack(">II5B", 2, 2, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *parts, chunk(b"IEND", b"")])


def animated() -> bytes:
    frames = [image().convert("P") for _ in range(5)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return saved(image(), "JPEG", exif=exif)


def clear_palette() -> bytes:
    return saved(image().convert("P"), "PNG", transparency=bytes(range(256)))


def png_info() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "<script>alert(1)</script>")
    return saved(image(), "PNG", pnginfo=info)


GHOSTSCRIPT = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%{RUN_CODE}) (w) file\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
NOT_ONE = Refused("is not a picture")
OTHER = Accepted(other=True)


def clean_picture(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    picture(saved(image(), "PNG"))(folder)


kinds(
    "pictures",
    ("no bytes", picture(b""), Refused("is empty")),
    ("HTML", picture(b"<html>404</html>"), NOT_ONE),
    ("SVG that names a file", picture(SVG), NOT_ONE),
    ("EPS, for which Pillow calls Ghostscript", picture(GHOSTSCRIPT.encode()), NOT_ONE),
    ("PDF", picture(b"%PDF-1.7\n"), NOT_ONE),
    (
        "PSD",
        picture(
            b"8BPS\0\1" + bytes(6) + b"\0\3" + struct.pack(">II", 9, 9) + b"\0\x08\0\3" + bytes(99)
        ),
        NOT_ONE,
    ),
    ("PPM", picture(saved(image(), "PPM")), NOT_ONE),
    ("pickle", picture(EVIL), NOT_ONE),
    (
        "PNG of 10^9 pixels in 50 bytes",
        picture(png_header(40_000, 40_000)),
        Refused("has 1,600,000,000 pixels"),
    ),
    (
        "PNG of 25,000,000 pixels in 70 KB",
        picture(flat("PNG", 5000)),
        Refused("has 25,000,000 pixels; at most 20,000,000"),
    ),
    ("PNG just small enough", picture(flat("PNG", 4400)), OTHER),
    ("PNG just small enough for machine code", picture(flat("PNG", 2000)), OTHER),
    ("JPEG just small enough for machine code", picture(flat("JPEG", 2000)), OTHER),
    ("PNG in 100,000 parts", picture(many_parts), OTHER),
    ("PNG with alpha, just small enough", picture(flat("PNG", 4400, "RGBA")), OTHER),
    ("PNG of 16 bits, just small enough", picture(flat("PNG", 4400, "I;16")), OTHER),
    (
        "progressive JPEG, just small enough",
        picture(flat("JPEG", 4400, progressive=True, subsampling=0)),
        OTHER,
    ),
    ("WebP just small enough", picture(flat("WEBP", 2800, "RGBA", lossless=True)), OTHER),
    ("GIF just small enough", picture(flat("GIF", 4400, "P")), OTHER),
    ("TIFF just small enough", picture(flat("TIFF", 4400, compression="tiff_lzw")), OTHER),
    (
        "WebP that is too large for its format",
        picture(flat("WEBP", 3000, lossless=True)),
        Refused("has 9,000,000 pixels; at most 8,000,000"),
    ),
    (
        "GIF with a screen of 4,294,836,225 pixels",
        picture(b"GIF89a\xff\xff\xff\xff\0\0\0;"),
        Refused("pixels; at most|is not a picture|header"),
    ),
    (
        "BMP with a height below 0",
        picture(
            b"BM"
            + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 9, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        Refused("pixels; at most|is not a picture|header"),
    ),
    (
        "TIFF whose directory is itself",
        picture(b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x4a\1\4\0\1\0\0\0\x08\0\0\0" + b"\x08\0\0\0"),
        Refused("header|is not a picture"),
    ),
    (
        "PNG with no width",
        picture(png_header(0, 9)),
        Refused("pixels; at most|is not a picture|header"),
    ),
    ("PNG that is cut off", picture(saved(image(), "PNG")[:-99]), Refused("is truncated")),
    ("JPEG that is cut off", picture(saved(image(), "JPEG")[:-99]), Refused("is truncated")),
    (
        "GIF that is cut off",
        picture(saved(image().convert("P"), "GIF")[:-99]),
        Refused("is truncated"),
    ),
    (
        "WebP that is cut off",
        picture(saved(image(), "WEBP")[:-99]),
        Refused("header|decode|truncated"),
    ),
    ("200 text chunks of 1 MB", picture(many_texts), Refused("header|decode|Too much memory")),
    ("colour profile of 100 MB", picture(color_profile), Refused("has a broken header")),
    ("text chunk with a script", picture(png_info), OTHER),
    (
        "more bytes than are allowed",
        picture(lambda: saved(image(), "PNG") + bytes(33 * 2**20)),
        Refused("has 34,.* bytes; at most 33,554,432"),
    ),
    ("one pixel", picture(saved(image(side=1), "PNG")), OTHER),
    ("one pixel wide", picture(saved(Image.new("L", (1, 60_000)), "PNG")), Refused("too narrow")),
    ("palette with transparency", picture(clear_palette), OTHER),
    ("16 bits", picture(saved(image("I;16"), "PNG")), OTHER),
    ("CMYK", picture(saved(image("CMYK"), "JPEG")), OTHER),
    ("animated GIF", picture(animated), OTHER),
    ("rotated by EXIF", picture(rotated), OTHER),
    ("JPEG that is called PNG", picture(saved(image(), "JPEG")), OTHER),
)
