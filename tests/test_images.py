"""Pictures: the same bytes as open_clip's transform, and clear words for what is no picture."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from samples import encoded

from clipstem import decode, images, resize
from clipstem.config import PictureFit
from clipstem.images import (
    SUFFIXES,
    PictureSpec,
    change_mildly,
    check_picture,
    on_white,
    shrink,
    small_copy,
    thumbnail,
    to_pixels,
)
from clipstem.question import ClipstemError

SIDE = 64


def image(mode: str = "RGB", width: int = 37, height: int = 53) -> Image.Image:
    """Noise on a slope, in a size where each rounding of the transform shows."""
    rng = np.random.default_rng([width, height])
    slope = np.linspace(0, 155, width * height).reshape(height, width, 1)
    pixels = slope + rng.integers(0, 100, (height, width, 3))
    shown = Image.fromarray(pixels.astype(np.uint8))
    return shown.convert("L").convert(mode) if mode in ("I;16", "F") else shown.convert(mode)


def with_alpha(mode: str) -> Image.Image:
    shown = image(mode)
    shown.putalpha(image("L").rotate(180))
    return shown


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn, which CLIP's transform does not undo
    return encoded(image(), "JPEG", exif=exif)


ZOO: dict[str, bytes] = {
    "PNG RGB": encoded(image()),
    "PNG L": encoded(image("L")),
    "PNG LA": encoded(with_alpha("L")),
    "PNG RGBA": encoded(with_alpha("RGB")),
    "PNG P": encoded(image("P")),
    "PNG P, one colour transparent": encoded(image("P"), transparency=3),
    "PNG P, alpha for each colour": encoded(image("P"), transparency=bytes(range(256))),
    "PNG RGB, one colour transparent": encoded(image(), transparency=(3, 4, 5)),
    "PNG L, one colour transparent": encoded(image("L"), transparency=3),
    "PNG 1": encoded(image("1")),
    "PNG I;16": encoded(image("I;16")),
    "JPEG RGB": encoded(image(), "JPEG"),
    "JPEG L": encoded(image("L"), "JPEG"),
    "JPEG CMYK": encoded(image("CMYK"), "JPEG"),
    "JPEG turned by EXIF": turned(),
    "GIF": encoded(image(), "GIF"),
    "GIF of two frames": encoded(
        image("P"), "GIF", save_all=True, append_images=[image("P").rotate(90)]
    ),
    "WEBP": encoded(image(), "WEBP"),
    "WEBP RGBA": encoded(with_alpha("RGB"), "WEBP"),
    "BMP": encoded(image(), "BMP"),
    "TIFF RGB": encoded(image(), "TIFF"),
    "TIFF CMYK": encoded(image("CMYK"), "TIFF"),
    "TIFF F": encoded(image("F"), "TIFF"),
    "TIFF LAB": encoded(image("LAB"), "TIFF"),
    **{
        f"PNG {width} × {height}": encoded(image(width=width, height=height))
        for width, height in [
            (1, 1),
            (2, 3),
            (1, 500),
            (500, 1),
            (63, 64),
            (64, 64),
            (64, 65),
            (65, 64),
            (129, 64),
            (53, 37),
            (300, 299),
            (101, 333),
        ]
    },
}
# open_clip's border has the value 0 of the file's own mode: white in CMYK, any colour of a palette.
# Ours is added after the conversion to RGB, so that it is `fill` in every file.
PAD_NEEDS_RGB = ("JPEG CMYK", "GIF", "GIF of two frames", "TIFF CMYK", "TIFF LAB")
TOO_NARROW_FOR_PAD = ("PNG 1 × 500", "PNG 500 × 1")  # open_clip rounds a side to 0 and fails
CASES = [
    (name, fit)
    for name in ZOO
    for fit in PictureFit
    if fit is not PictureFit.pad or name not in TOO_NARROW_FOR_PAD
]

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")


def steps(spec: PictureSpec) -> list[Callable[[Any], Any]]:
    """open_clip's own transform, up to the tensor."""
    whole = image_transform_v2(PreprocessCfg(**spec.open_clip()), is_train=False)
    kept: list[Callable[[Any], Any]] = whole.transforms[:-2]
    return kept


def through(steps: list[Callable[[Any], Any]], data: bytes) -> NDArray[np.uint8]:
    shown: Any = Image.open(io.BytesIO(data))
    for step in steps:
        shown = step(shown)
    return np.array(shown)


def to_rgb(shown: Image.Image) -> Image.Image:
    return shown.convert("RGB")


@pytest.fixture(scope="module", autouse=True)
def _machine_code() -> None:
    images.warm_up()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("name", "fit"), CASES)
def test_pixels_are_those_of_open_clips_transform(
    name: str, fit: PictureFit, interpolation: str
) -> None:
    spec = PictureSpec(SIDE, fit, interpolation)
    theirs = steps(spec)
    if fit is PictureFit.pad and name in PAD_NEEDS_RGB:
        theirs.insert(1, to_rgb)
    pixels = to_pixels(ZOO[name], spec)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, through(theirs, ZOO[name]))


@pytest.mark.parametrize("name", ["PNG RGB", "JPEG CMYK"])
def test_normalised_pixels_are_the_tensor_of_the_whole_transform(name: str) -> None:
    spec = PictureSpec(SIDE)
    transform: Any = image_transform_v2(PreprocessCfg(**spec.open_clip()), is_train=False)
    theirs = transform(Image.open(io.BytesIO(ZOO[name])))
    pixels_HWC = torch.from_numpy(to_pixels(ZOO[name], spec)).float() / 255
    ours = (pixels_HWC - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    torch.testing.assert_close(ours.permute(2, 0, 1), theirs)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@given(width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 120))
def test_machine_code_gives_pillows_integers(
    interpolation: str, width: int, height: int, size: int
) -> None:
    data = encoded(image(width=width, height=height))
    images.warm_up()
    for fit in PictureFit:
        spec = PictureSpec(size, fit, interpolation)
        fast = to_pixels(data, spec)
        with mock.patch.object(images, "_machine_code", []):
            np.testing.assert_array_equal(fast, to_pixels(data, spec))


@pytest.mark.parametrize("name", ZOO)
def test_usual_pictures_are_read_without_pillow(name: str) -> None:
    with Image.open(io.BytesIO(ZOO[name])) as opened:
        found = decode.rgb(ZOO[name], opened)
        usual = name.startswith(("PNG", "JPEG")) and opened.mode == "RGB"
        if usual and "transparency" not in opened.info:
            assert found is not None
            np.testing.assert_array_equal(found, np.asarray(opened))
        else:
            assert found is None


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: bytes, *behind: bytes, size: tuple[int, int] = (2, 2), kind: int = 0) -> bytes:
    """A PNG of RGB whose lines are given as its file holds them."""
    header = chunk(b"IHDR", struct.pack(">II5B", *size, 8, 2, 0, 0, kind))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *behind, chunk(b"IDAT", pixels), chunk(b"IEND")])


FLAT = zlib.compress(bytes(14))
UNUSUAL = {
    "rows too many": png(zlib.compress(bytes(21))),
    "a row too few": png(zlib.compress(bytes(7))),
    "a bomb": png(zlib.compress(bytes(2**24))),
    "a filter there is not": png(zlib.compress(bytes([5, *bytes(13)]))),
    "a broken stream": png(FLAT[:-6] + bytes(6)),
    "interlaced": png(FLAT, kind=1),
    "pixels apart": png(FLAT[5:], chunk(b"IDAT", FLAT[:5]), chunk(b"tEXt", b"a\0b")),
    "a second header": png(FLAT, chunk(b"IHDR", struct.pack(">II5B", 2, 2, 8, 2, 0, 0, 1))),
    "frames": png(FLAT, chunk(b"acTL", struct.pack(">II", 1, 0))),
    "ends before its end": png(FLAT)[:-12],
    "a text that is a bomb": png(FLAT, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))),
    "ten thousand parts": png(FLAT, *[chunk(b"IDAT")] * 10_000),
    "a JPEG that ends early": ZOO["JPEG RGB"][:-100],
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_what_is_unusual_is_left_to_pillow(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as opened:
        assert decode.rgb(data, opened) is None
    np.testing.assert_equal(seen(data), seen(data, by_pillow=True))


def seen(data: bytes, *, by_pillow: bool = False) -> NDArray[np.uint8] | str:
    """The pixels, or why there are none."""
    machine_code = [] if by_pillow else images._machine_code
    with mock.patch.object(images, "_machine_code", machine_code):
        try:
            return to_pixels(data, PictureSpec(16))
        except ClipstemError as error:
            return str(error)


LARGE = {kind: encoded(image(width=120, height=90), kind) for kind in ("PNG", "JPEG")}


@pytest.mark.parametrize("kind", LARGE)
@given(damage=st.data())
def test_damage_is_found_as_pillow_finds_it(kind: str, damage: st.DataObject) -> None:
    data = bytearray(LARGE[kind])
    for _ in range(damage.draw(st.integers(0, 3))):
        data[damage.draw(st.integers(0, len(data) - 1))] = damage.draw(st.integers(0, 255))
    cut = bytes(data[: damage.draw(st.integers(len(data) // 2, len(data)))])
    np.testing.assert_equal(seen(cut), seen(cut, by_pillow=True))


@given(st.data())
def test_every_filter_of_a_png_is_pillows(drawn: st.DataObject) -> None:
    width, height = drawn.draw(st.integers(1, 40)), drawn.draw(st.integers(1, 8))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 2**32)))
    lines_HB = rng.integers(0, 256, (height, 1 + 3 * width), np.uint8)
    lines_HB[:, 0] = drawn.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    data = png(zlib.compress(lines_HB.tobytes()), size=(width, height))
    with Image.open(io.BytesIO(data)) as opened:
        found = decode.rgb(data, opened)
        np.testing.assert_array_equal(found, np.asarray(opened))


def test_a_thread_of_a_picture_costs_only_what_is_kept_of_it() -> None:
    thread = image(width=2, height=4000)
    resized = thread.resize((64, 128_000), Image.Resampling.BICUBIC)
    kept = (0, 60_000, 64, 60_064)
    found = resize.resized(np.asarray(thread), resized.size, kept, "bicubic")
    np.testing.assert_array_equal(found, np.asarray(resized.crop(kept)))


@pytest.mark.parametrize("module", ["clipstem.decode", "clipstem.resize"])
def test_without_a_library_pillow_does_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_machine_code", [])
    monkeypatch.setitem(sys.modules, module, None)
    images.warm_up.cache_clear()
    images.warm_up()
    assert images._machine_code == []
    monkeypatch.undo()
    images.warm_up.cache_clear()
    images.warm_up()
    assert images._machine_code[-1] == (decode.rgb, resize.resized)


def test_one_picture_does_not_wait_for_machine_code() -> None:
    code = (
        "import sys; from clipstem.images import PictureSpec, to_pixels; from PIL import Image\n"
        "import io; file = io.BytesIO(); Image.new('RGB', (9, 9)).save(file, 'png')\n"
        "to_pixels(file.getvalue(), PictureSpec(4)); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_padding_keeps_all_of_it_between_borders_of_the_fill() -> None:
    white = encoded(Image.new("RGB", (60, 30), "white"))
    pixels = to_pixels(white, PictureSpec(SIDE, PictureFit.pad, fill=77))
    assert (pixels[:16] == 77).all()
    assert (pixels[16:48] == 255).all()
    assert (pixels[48:] == 77).all()


@pytest.mark.parametrize("name", PAD_NEEDS_RGB)
def test_the_border_is_the_fill_in_every_mode(name: str) -> None:
    pixels = to_pixels(ZOO[name], PictureSpec(SIDE, PictureFit.pad, fill=77))
    assert (pixels[:, :8] == 77).all()
    assert (pixels[:, -8:] == 77).all()


@pytest.mark.parametrize("name", TOO_NARROW_FOR_PAD)
def test_the_narrowest_picture_is_padded_too(name: str) -> None:
    pixels = to_pixels(ZOO[name], PictureSpec(SIDE, PictureFit.pad, fill=0))
    assert (pixels.max(axis=2) > 0).sum() == SIDE  # a line of one pixel's width


def test_cropping_a_picture_that_grows_enormous_is_refused() -> None:
    thread = encoded(Image.new("L", (1, 20_000)))
    with pytest.raises(
        ClipstemError, match=r"^is 1 × 20000 px, too narrow: .* makes 81,920,000 pixels; at most 20"
    ):
        to_pixels(thread, PictureSpec(SIDE))
    assert to_pixels(thread, PictureSpec(SIDE, PictureFit.squash)).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("spec_fit", PictureFit)
def test_what_does_not_decode_is_refused(spec_fit: PictureFit) -> None:
    with pytest.raises(ClipstemError, match=r"^is truncated$"):
        to_pixels(ZOO["PNG RGB"][:-500], PictureSpec(SIDE, spec_fit))


# ---------------------------------------------------------------------------- spec


@pytest.mark.parametrize("fit", PictureFit)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_spec_survives_open_clips_config(fit: PictureFit, interpolation: str) -> None:
    spec = PictureSpec(96, fit, interpolation, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), fill=9)
    written = json.loads(json.dumps(spec.open_clip()))
    assert PictureSpec.from_open_clip(written) == spec
    assert PictureSpec.from_open_clip(vars(PreprocessCfg(**written))) == spec


def test_open_clips_defaults_are_ours() -> None:
    assert PictureSpec.from_open_clip(vars(PreprocessCfg())) == PictureSpec(224)
    assert PictureSpec.from_open_clip({"size": 64}) == PictureSpec(64)


def test_a_model_that_sees_no_squares_is_refused() -> None:
    with pytest.raises(
        ClipstemError, match=r"the model's pictures are .*224, 336.* expected a square"
    ):
        PictureSpec.from_open_clip({"size": (224, 336)})


# ---------------------------------------------------------------------------- check_picture


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("name", ZOO)
def test_every_picture_of_the_zoo_is_let_in_under_its_own_suffix(name: str, decode: bool) -> None:
    assert check_picture(ZOO[name], decode=decode) == SUFFIXES[name.split()[0]]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises the earth."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; expected an encoded picture"),
        (b"<html>not found</html>", "is not a picture (starts with b'<html')"),
        (b"%PDF-1.7", "is not a picture (starts with b'%PDF-')"),
        (encoded(image(), "PPM"), "is not a picture (starts with b'P6\\n37')"),
        (bomb(10_000, 8_000), "has 80,000,000 pixels; at most 20,000,000 are allowed"),
        (bomb(60_000, 60_000), "has 3,600,000,000 pixels; at most 20,000,000 are allowed"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_header(
    data: bytes, message: str, decode: bool
) -> None:
    with pytest.raises(ClipstemError) as error:
        check_picture(data, decode=decode)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PNG RGB", "is truncated"),
        ("JPEG RGB", "is truncated"),
        ("GIF", "is truncated"),
        ("BMP", "is truncated"),
        ("WEBP", "has a broken header ("),
        ("TIFF RGB", "is truncated"),
    ],
)
def test_half_a_picture_is_found_by_decoding(name: str, message: str) -> None:
    with pytest.raises(ClipstemError) as error:
        check_picture(ZOO[name][: len(ZOO[name]) // 2], decode=True)
    assert str(error.value).startswith(message)


def test_half_a_picture_may_have_a_whole_header() -> None:
    assert check_picture(ZOO["PNG RGB"][: len(ZOO["PNG RGB"]) // 2], decode=False) == "png"


def test_the_limit_of_pixels_can_be_set() -> None:
    with pytest.raises(ClipstemError, match=r"^has 1,961 pixels; at most 1,960 are allowed$"):
        check_picture(ZOO["PNG RGB"], decode=False, max_pixels=1960)
    assert check_picture(ZOO["PNG RGB"], decode=False, max_pixels=1961) == "png"


# ---------------------------------------------------------------------------- shrink


@pytest.mark.parametrize(
    "name", ["PNG RGB", "PNG P", "PNG I;16", "JPEG CMYK", "GIF", "WEBP", "BMP"]
)
def test_a_large_picture_is_made_smaller_in_its_own_format(name: str) -> None:
    with Image.open(io.BytesIO(shrink(ZOO[name], 20))) as small:
        assert small.size == (14, 20)
        assert small.format == name.split()[0]
    assert shrink(ZOO[name], 53) is ZOO[name]


# ---------------------------------------------------------------------------- change_mildly

COLOURS = {"red": (220, 30, 30), "green": (20, 160, 40), "blue": (30, 40, 200), "grey": (90,) * 3}


def four_quarters() -> NDArray[np.uint8]:
    """A colour in each quarter of a picture."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    places = [(0, 0), (0, 20), (20, 0), (20, 20)]
    for (top, left), colour in zip(places, COLOURS.values(), strict=True):
        pixels[top : top + 20, left : left + 20] = colour
    return pixels


@pytest.mark.parametrize("seed", range(40))
def test_a_changed_picture_keeps_its_colours_in_their_places(seed: int) -> None:
    before = four_quarters()
    after = change_mildly(before, seed, 1, 2)
    assert after.shape == before.shape and after.dtype == np.uint8
    assert not np.array_equal(after, before)
    for top, left in ((4, 4), (4, 32), (32, 4), (32, 32)):  # inside every quarter, wherever cut
        was, now = (image[top, left].astype(int) for image in (before, after))
        assert now.argmax() == was.argmax()
        assert abs(now - was).max() <= 60
        if len(set(was)) == 1:
            assert max(now) - min(now) <= 1


def test_a_change_is_a_function_of_its_seed() -> None:
    pixels = four_quarters()
    first = change_mildly(pixels, 3, 5, 7)
    assert np.array_equal(first, change_mildly(pixels, 3, 5, 7))
    for other in ((4, 5, 7), (3, 6, 7), (3, 5, 8)):
        assert not np.array_equal(first, change_mildly(pixels, *other))


def test_at_least_nine_tenths_of_a_picture_stay() -> None:
    slope = np.zeros((100, 100, 3), np.uint8)
    slope[:] = np.arange(100)[None, :, None] + 50
    for seed in range(30):
        changed = change_mildly(slope, seed).astype(float)
        # Contrast and brightness are within a tenth, what is cut off within a twentieth a side.
        spread = (changed[:, -1].mean() - changed[:, 0].mean()) / 99
        assert 0.94 * 0.9 * 0.9 - 0.02 <= spread <= 1.1 * 1.1 + 0.02


@pytest.mark.parametrize("name", ZOO)
def test_a_thumbnail_of_anything_is_small_and_browsers_know_it(name: str) -> None:
    with Image.open(io.BytesIO(ZOO[name])) as whole:
        side = min(20, max(whole.size))
    with Image.open(io.BytesIO(thumbnail(ZOO[name], 20))) as shown:
        assert (shown.format, shown.mode, max(shown.size)) == ("WEBP", "RGB", side)


def test_a_thumbnail_is_never_larger_than_its_picture_and_stands_on_white() -> None:
    clear = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    with Image.open(io.BytesIO(thumbnail(encoded(clear), 20))) as shown:
        assert shown.size == (8, 6)
        assert min(shown.getpixel((4, 3))) > 250  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_small_copy_is_the_mean_of_the_picture_on_white(name: str) -> None:
    with Image.open(io.BytesIO(ZOO[name])) as whole:
        size = whole.size
        shown = on_white(whole) if whole.mode not in ("RGB", "L") else whole.convert("RGB")
        expected = np.asarray(shown.resize((8, 8), Image.Resampling.BOX), np.int16)
    copy, *found = small_copy(ZOO[name], 8)
    assert tuple(found) == size
    # A JPEG is decoded near the size asked for; colours that are nearly clear lose some bits.
    assert np.abs(copy - expected).max() <= 3


# ---------------------------------------------------------------------------- what is let in

MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "jpeg": ["1", "L", "RGB", "CMYK"],
    "webp": ["L", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P", "RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
}


@pytest.mark.parametrize(("name", "mode"), [(n, mode) for n in MODES for mode in MODES[n]])
@pytest.mark.parametrize("side", [1, 40])
def test_odd_pictures_are_let_in_and_shrink(name: str, mode: str, side: int) -> None:
    image: Image.Image = Image.effect_noise((side, side), 90).convert("RGB")
    # Pillow makes 16-bit pictures of none but 32-bit ones.
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    data = encoded(image, name)
    suffix = {"jpeg": "jpg"}.get(name, name)
    assert check_picture(data, decode=True) == check_picture(data, decode=False) == suffix
    smaller = shrink(data, 20)
    assert (smaller == data) == (side == 1)
    assert check_picture(smaller, decode=True) == suffix
    assert max(Image.open(io.BytesIO(smaller)).size) == min(side, 20)


def test_a_bomb_is_refused_by_its_header() -> None:
    tracemalloc.start()
    with pytest.raises(ClipstemError, match=r"^has 900,000,000 pixels; at most 20,000,000 are"):
        check_picture(bomb(30_000, 30_000), decode=True)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
