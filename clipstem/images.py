"""Encoded pictures: what they are, whether they are whole, and what a model sees of them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipstem.config import PictureFit
from clipstem.question import ClipstemError

SUFFIXES = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further frames behind it, as phones write them
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
}
"""The suffix of each format that is let in, by Pillow's name for the format. An allow-list."""

FORMATS = [name for name in SUFFIXES if name != "MPO"]  # Pillow opens that one as a JPEG

MAX_BYTES = 32 * 2**20  # of an encoded picture
MAX_PIXELS = 20_000_000  # decoded, Pillow holds 4 bytes a pixel and makes one copy at most
MAX_PIXELS_OF = {"WEBP": 8_000_000}  # libwebp holds such a picture four times
MAX_SIDE = 2048  # px, of the square that a model sees
MANY_PIXELS = 4_000_000  # of these no copy is made

Box = tuple[int, int, int, int]  # left, top, right, bottom

JPEG_QUALITY = 90  # of pictures made smaller; 1 to 100


def check_picture(data: bytes, *, decode: bool, max_pixels: int = MAX_PIXELS) -> str:
    """The suffix that belongs to an encoded picture, from its header and not from its name.

    With `decode` the first frame is decoded too, which finds truncated and corrupt files.

    Raises:
        ClipstemError: with the reason why it is no usable picture.
    """
    with _open(data, max_pixels) as image:
        suffix = SUFFIXES[str(image.format)]
        if decode:
            # A JPEG decoded at an eighth of its size still reads every byte of its stream.
            image.draft("L", (1, 1))
            _decode(image)
    return suffix


def shrink(data: bytes, max_side: int) -> bytes:
    """The picture scaled so that its longer side is `max_side` px, in its own format.

    A picture that is small enough comes back as the same bytes. Lossy; only the first frame stays.
    """
    with _open(data, MAX_PIXELS) as image:
        scale = max_side / max(image.size)
        if scale >= 1:
            return data
        _decode(image)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        buffer = io.BytesIO()
        keep: dict[str, Any] = {
            key: image.info[key] for key in ("exif", "icc_profile") if key in image.info
        }
        name = "JPEG" if image.format == "MPO" else str(image.format)
        if name in ("JPEG", "WEBP"):
            keep["quality"] = JPEG_QUALITY
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, name, **keep)
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """The picture that a file holds, as RGB.

    Raises:
        ClipstemError: if the bytes are not a picture that can be read whole.
    """
    with _open(data, MAX_PIXELS) as image:
        _decode(image)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
        return image if image.mode == "RGB" else image.convert("RGB")


def thumbnail(data: bytes, max_side: int) -> bytes:
    """The picture on white as WebP, its longer side at most `max_side` px, for people to look at.

    Raises:
        ClipstemError: if the bytes are not a picture that can be read whole.
    """
    with _open(data, MAX_PIXELS) as image:
        image.draft("RGB", (max_side, max_side))  # a JPEG is decoded near the size asked for
        _decode(image)
        if image.width * image.height > MANY_PIXELS:
            image.thumbnail((max_side, max_side), reducing_gap=None)
        shown = image.convert("RGBA")
    shown.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    on_white(shown).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def on_white(image: Image.Image) -> Image.Image:
    """A decoded picture as people see it on a page, RGB."""
    shown = image.convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    return Image.alpha_composite(white, shown).convert("RGB")


def small_copy(data: bytes, side: int) -> tuple[np.ndarray, int, int]:
    """The picture on white squeezed into a square, uint8 [side, side, 3], and its width and height.

    Each value is the mean of a cell of the picture, so that pictures which were encoded again or
    made a little larger or smaller keep nearly the same.

    Raises:
        ClipstemError: if the bytes are not a picture that can be read whole.
    """
    with _open(data, MAX_PIXELS) as image:
        width, height = image.size
        image.draft("RGB", (4 * side, 4 * side))  # a large JPEG is decoded near that size
        _decode(image)
        if image.mode not in ("RGB", "L", "RGBA", "LA"):  # numbers of colours have no mean
            image = image.convert("RGBA")
        squeezed = image.resize((side, side), Image.Resampling.BOX)  # large ones are not copied
        if squeezed.mode in ("RGBA", "LA"):
            squeezed = on_white(squeezed)
    return np.asarray(squeezed.convert("RGB")), width, height


@dataclass(frozen=True)
class PictureSpec:
    """How a picture file becomes a model's input; stored with the weights.

    Attributes:
        size: side of the square the model sees, px.
        fit: what happens to a picture that is not square.
        interpolation: "bicubic" or "bilinear".
        mean, std: of each channel, on values from 0 to 1.
        fill: grey value of the border that `pad` adds, 0 to 255.
    """

    size: int
    fit: PictureFit = PictureFit.crop
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own, open_clip
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    fill: int = 0

    @classmethod
    def from_open_clip(cls, cfg: Mapping[str, Any]) -> PictureSpec:
        """From the `preprocess_cfg` of open_clip; what it leaves out has CLIP's default.

        Raises:
            ClipstemError: for a picture that is no square, or settings that make no sense.
        """
        sides = cfg.get("size")
        sides = sides if isinstance(sides, Sequence) else (sides,)
        if len(set(sides)) != 1:
            raise ClipstemError(f"the model's pictures are {sides} px; expected a square")
        mode = cfg.get("resize_mode", "shortest")
        interpolation = cfg.get("interpolation", cls.interpolation)
        mean, std = tuple(cfg.get("mean", cls.mean)), tuple(cfg.get("std", cls.std))
        numbers = all(type(value) in (int, float) for value in (*mean, *std))
        if (
            type(sides[0]) is not int
            or not 0 < sides[0] <= MAX_SIDE
            or mode not in _FIT_OF_RESIZE_MODE
            or interpolation not in ("bicubic", "bilinear")
            or not (numbers and len(mean) == len(std) == 3 and all(std))
        ):
            raise ClipstemError(
                f"the model's pictures are {dict(cfg)}; expected a size from 1 to {MAX_SIDE} px, "
                f"resize_mode {', '.join(_FIT_OF_RESIZE_MODE)}, interpolation bicubic or bilinear, "
                "and mean and std of three channels"
            )
        return cls(
            size=sides[0],
            fit=_FIT_OF_RESIZE_MODE[mode],
            fill=int(cfg.get("fill_color", 0)),
            interpolation=interpolation,
            mean=mean,
            std=std,
        )

    def open_clip(self) -> dict[str, Any]:
        """The same as `preprocess_cfg` of an `open_clip_config.json`."""
        return {
            "size": [self.size, self.size],
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": {fit: mode for mode, fit in _FIT_OF_RESIZE_MODE.items()}[self.fit],
            "fill_color": self.fill,
        }


_FIT_OF_RESIZE_MODE = {
    "shortest": PictureFit.crop,
    "longest": PictureFit.pad,
    "squash": PictureFit.squash,
}


def to_pixels(data: bytes, spec: PictureSpec, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode and fit a picture file: uint8 [size, size, 3], the same bytes as CLIP's transform.

    At most `max_pixels` has the picture, and has it once its shorter side is scaled.

    The order is the reference's: resize in the file's own mode, crop or pad, then convert to RGB.

    Raises:
        ClipstemError: if the bytes are not a picture that can be read whole.
    """
    with _open(data, max_pixels) as image:
        size = _fitted_size(image.width, image.height, spec)
        if size[0] * size[1] > max(max_pixels, spec.size**2):
            raise ClipstemError(
                f"is {image.width} × {image.height} px, too narrow: its shorter side scaled to "
                f"{spec.size} px makes {size[0] * size[1]:,} pixels; at most {max_pixels:,} are "
                "allowed (picture_fit=pad scales the longer side)"
            )
        resize = (size, _kept(size, spec), spec.interpolation)
        rgb_HW3 = _for_machine_code(data, image)
        if rgb_HW3 is None:
            pixels = _resized_rgb(image, *resize)
        else:
            pixels = _machine_code[0].resized(rgb_HW3, *resize)
    return _padded(pixels, spec)


def _for_machine_code(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decode the picture: to uint8 [H, W, 3] if machine code will resize it, else in its place."""
    if not _machine_code or image.width * image.height > MANY_PIXELS:
        _decode(image)
        return None
    rgb_HW3 = _machine_code[0].rgb(data, image)
    if rgb_HW3 is None:
        _decode(image)
        if image.mode in ("RGB", "L"):
            rgb_HW3 = np.asarray(image.convert("RGB"))
    return rgb_HW3


def _resized_rgb(
    image: Image.Image, size: tuple[int, int], kept: Box, interpolation: str
) -> np.ndarray:
    """The part `kept` of the decoded picture resized to `size`, RGB."""
    resized = image.resize(size, Image.Resampling[interpolation.upper()])
    if kept != (0, 0, *size):
        resized = resized.crop(kept)
    if resized.mode == "P" and "transparency" in resized.info:
        resized = resized.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return np.array(resized.convert("RGB"))


LEAST_SIDE = 0.9**0.5  # of a changed picture, so that nine tenths of its area stay
MOST_LIGHT = 0.1  # change of brightness and of contrast


def change_mildly(pixels_HWC: np.ndarray, *seed: int) -> np.ndarray:
    """A picture that looks a little different and has the same answer; the same for equal seeds.

    Nine tenths of its area or more, enlarged again; brightness and contrast within a tenth, for all
    channels alike. No flips and no other colours: questions ask for left, right and colours.
    """
    random = np.random.default_rng(seed)
    height, width, _ = pixels_HWC.shape
    wide, high = random.uniform(LEAST_SIDE, 1, 2) * (width, height)
    left, top = random.random(2) * (width - wide, height - high)
    box = (left, top, left + wide, top + high)
    part = Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BICUBIC, box)
    values_HWC = np.asarray(part, np.float32)
    contrast, brightness = random.uniform(1 - MOST_LIGHT, 1 + MOST_LIGHT, 2)
    grey = values_HWC.mean()
    changed_HWC = ((values_HWC - grey) * contrast + grey) * brightness
    return changed_HWC.round().clip(0, 255).astype(np.uint8)


class _MachineCode(NamedTuple):
    rgb: Callable[[bytes, Image.Image], np.ndarray | None]  # of `clipstem.decode`
    resized: Callable[[np.ndarray, tuple[int, int], Box, str], np.ndarray]  # of `clipstem.resize`


@cache
def warm_up() -> None:
    """From now on pictures are read by `clipstem.decode` and resized by `clipstem.resize`, where
    the libraries that these need are installed.

    Loading them takes a second, which pays for many pictures but not for one: until then Pillow
    makes the same pixels, more slowly. Processes that are forked later are born with them.
    """
    try:
        from clipstem.decode import rgb
        from clipstem.resize import resized
    except ImportError:
        return
    _machine_code[:] = [_MachineCode(rgb, resized)]
    for mode in ("RGB", "L"):  # read by each; compiles
        picture = io.BytesIO()
        Image.new(mode, (2, 2)).save(picture, "PNG")
        to_pixels(picture.getvalue(), PictureSpec(1))


_machine_code: list[_MachineCode] = []  # one at most


def _kept(size: tuple[int, int], spec: PictureSpec) -> Box:
    """The part of a resized picture that the model sees: left, top, right, bottom."""
    width, height = (min(side, spec.size) for side in size)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return left, top, left + width, top + height


def _fitted_size(width: int, height: int, spec: PictureSpec) -> tuple[int, int]:
    """The (width, height) to resize to, rounded as torchvision and open_clip round it."""
    if spec.fit is PictureFit.squash:
        return spec.size, spec.size
    if spec.fit is PictureFit.crop:
        short, long = sorted((width, height))
        other = int(spec.size * long / short)
        return (spec.size, other) if width <= height else (other, spec.size)
    ratio = max(width, height) / spec.size
    # open_clip gives a very narrow picture no width at all here, and fails.
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _padded(pixels: np.ndarray, spec: PictureSpec) -> np.ndarray:
    """Put the picture in the middle of a square, the odd pixel of border right and below."""
    missing = [spec.size - side for side in pixels.shape[:2]]
    if not any(missing):
        return pixels
    border = [(side // 2, side - side // 2) for side in missing]
    return np.pad(pixels, [*border, (0, 0)], constant_values=spec.fill)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ClipstemError("is empty; expected an encoded picture")
    if len(data) > MAX_BYTES:
        raise ClipstemError(f"has {len(data):,} bytes; at most {MAX_BYTES:,} are allowed")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own, higher, limit: its message starts with the number of pixels.
        found = re.search(r"\d+", str(error))
        raise _too_large(int(found[0]) if found else 0, max_pixels) from None
    except UnidentifiedImageError:
        raise ClipstemError(f"is not a picture (starts with {data[:5]!r})") from None
    except Exception as error:  # hostile headers make the plugins raise anything
        raise ClipstemError(f"has a broken header ({_brief(error)})") from None
    pixels, allowed = image.width * image.height, MAX_PIXELS_OF.get(str(image.format), max_pixels)
    if not 0 < pixels <= min(allowed, max_pixels):
        image.close()
        raise _too_large(pixels, min(allowed, max_pixels))
    return image


def _decode(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # hostile streams make the decoders raise anything
        if "truncated" in str(error).lower():
            raise ClipstemError("is truncated") from None
        raise ClipstemError(f"does not decode ({_brief(error)})") from None


def _too_large(pixels: int, max_pixels: int) -> ClipstemError:
    return ClipstemError(f"has {pixels:,} pixels; at most {max_pixels:,} are allowed")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
