"""Read image files, and prepare pictures of digits the way MNIST's images were prepared."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_sweep.common.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # what Pillow may decode
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
DIGITS = tuple("0123456789")
MAX_PIXELS = 50_000_000  # larger pictures are refused before they are decoded
MAX_WEBP_PIXELS = 20_000_000  # its decoder takes 16 bytes a pixel, the others at most 8
MAX_BYTES = 1_000_000_000  # the WebP decoder reads the whole file
STRIP_PIXELS = 1_000_000  # of a deep picture that is converted at a time
WORKING_SIZE = 560  # pixels; the longer side of a picture is reduced to this first
BOX, SIZE = 20, 28  # pixels; MNIST fits the digit into a box and centres it in the image
COLOURED = 25, 0.01  # levels between the channels of a coloured pixel; share of such pixels
MIN_INK = 0.15  # share of the contrast; fainter pixels count as background


def image_files(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted.

    Raises:
        UserError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}") from error

    files = (Path(top, n) for top, _, names in os.walk(folder, onerror=refuse) for n in names)
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)


def read_image(
    source: Path | BinaryIO, shape: Sequence[int], *, is_digit: bool = True
) -> NDArray[np.uint8]:
    """Read a picture as an image for a model with inputs of `shape` (C, H, W).

    Raises:
        UserError: see `read_picture`.
    """
    return prepare(read_picture(source), shape, is_digit=is_digit)


def read_picture(source: Path | BinaryIO) -> Image.Image:
    """Decode a picture, turn it upright and reduce its longer side to `WORKING_SIZE` pixels.

    This is the only place that decodes pictures from outside. It takes at most 400 MB of memory.

    Returns:
        A picture in the mode RGBA if parts of it are transparent, otherwise RGB.

    Raises:
        UserError: the file is missing, not a regular file or not a readable picture, or the picture
            has too many pixels.
    """
    if isinstance(source, Path):
        if not os.path.isfile(source):  # opening a FIFO would wait
            raise UserError("not a regular file" if os.path.lexists(source) else "no such file")
        if os.path.getsize(source) > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES:,} bytes")
    try:
        # Pillow goes by the content of a file: EPS in a .png would start Ghostscript
        with Image.open(source, formats=FORMATS) as picture:
            limit = MAX_WEBP_PIXELS if picture.format == "WEBP" else MAX_PIXELS
            if picture.width * picture.height > limit:
                size = f"{picture.width} x {picture.height} pixels"
                raise UserError(f"{size} are more than {limit:,}")
            picture.draft(None, (2 * WORKING_SIZE, 2 * WORKING_SIZE))  # decodes a part of a JPEG
            ImageOps.exif_transpose(picture, in_place=True)
            small = _to_8_bits(picture)
            small.thumbnail((WORKING_SIZE, WORKING_SIZE))
            return small.convert("RGBA" if small.has_transparency_data else "RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, checked while opening
        raise UserError(f"more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise UserError(f"not a readable picture (expected {', '.join(FORMATS)})") from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise UserError(f"not a readable picture ({reason})") from error


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale a picture with 16 or more bits per pixel to 8 bits. Pillow would clip it."""
    if not picture.mode.startswith(("I", "F")):
        return picture

    def strips() -> Iterator[tuple[slice, NDArray[np.float32]]]:
        n_rows = max(1, STRIP_PIXELS // picture.width)
        for top in range(0, picture.height, n_rows):
            rows = slice(top, min(top + n_rows, picture.height))
            strip = picture.crop((0, rows.start, picture.width, rows.stop))
            deep = np.nan_to_num(np.asarray(strip, np.float32), posinf=0)
            yield rows, deep.clip(0, 1e36)  # 255 times as much is still a float32

    brightest = max(1e-6, *(float(strip.max()) for _, strip in strips()))
    scaled = np.empty((picture.height, picture.width), np.uint8)
    for rows, strip in strips():
        scaled[rows] = 255 * strip / brightest
    return Image.fromarray(scaled)


def is_coloured(picture: Image.Image) -> bool:
    """Whether a picture of `read_picture` shows more than the noise of a grey one."""
    levels, share = COLOURED
    channels = np.asarray(picture)[..., :3]
    return bool(((channels.max(2) - channels.min(2)) > levels).mean() > share)


def prepare(
    picture: Image.Image, shape: Sequence[int], *, is_digit: bool = True
) -> NDArray[np.uint8]:
    """Turn a picture of `read_picture` into an image of `shape` (C, H, W).

    Digits of shape (1, 28, 28) are prepared like MNIST's. Any other picture is cropped and resized.
    """
    if is_prepared_like_mnist(shape, is_digit=is_digit):
        return prepare_digit(to_grey(picture))[None]
    return crop_and_resize(picture, shape)


def is_prepared_like_mnist(shape: Sequence[int], *, is_digit: bool) -> bool:
    """Whether `prepare` makes images like MNIST's."""
    return is_digit and tuple(shape) == (1, SIZE, SIZE)


def to_grey(picture: Image.Image) -> NDArray[np.float32]:
    """Convert to grey [H, W] in 0..1. Fill transparent parts with white, or black if the ink is light."""
    if picture.mode != "RGBA":
        return np.asarray(picture.convert("L")).astype(np.float32) / np.float32(255)
    alpha = np.asarray(picture)[..., 3] / np.float32(255)
    grey = np.asarray(picture.convert("RGB").convert("L"), np.float32) / 255
    ink = float((grey * alpha).sum() / max(alpha.sum(), 1e-6))  # mean grey of the opaque parts
    background = 0.0 if ink > 0.5 else 1.0
    return (grey * alpha + background * (1 - alpha)).astype(np.float32)


def prepare_digit(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn a grey picture of a digit [H, W] in 0..1 into an image [28, 28], light on black.

    As in MNIST (LeCun et al. 1998), scale the digit to fit a box of 20 x 20 pixels, keep its aspect
    ratio, and place its centre of mass at the centre of the image. The median of the border is
    the background. An image that is already in this form is returned unchanged. A picture without
    contrast becomes black.
    """
    if grey.shape == (SIZE, SIZE) and _is_prepared(grey):
        return (grey * 255).round().astype(np.uint8)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    contrast = float(ink.max())
    if contrast < 0.05:  # blank paper
        return np.zeros((SIZE, SIZE), np.uint8)
    ink /= contrast
    ink[ink < MIN_INK] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    digit = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = BOX / max(digit.size)
    size = (max(1, round(digit.width * scale)), max(1, round(digit.height * scale)))
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(digit.resize(size, resampling))
    small = (small / small.max()).astype(np.float32)
    image = np.zeros((SIZE, SIZE), np.float32)
    top, left = (
        int(np.clip(round(SIZE / 2 - c), 0, SIZE - n))
        for c, n in zip(_centre_of_mass(small), small.shape, strict=True)
    )
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return (image * 255).round().astype(np.uint8)


def _is_prepared(grey: NDArray[np.float32]) -> bool:
    """Whether the border is black, and the digit fits the box and is centred."""
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    if not len(rows) or grey[0].any() or grey[-1].any() or grey[:, 0].any() or grey[:, -1].any():
        return False
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    centre = _centre_of_mass(grey)
    return bool(extent <= BOX + 2 and max(abs(c - SIZE / 2) for c in centre) < 1.5)


def _centre_of_mass(ink: NDArray[np.float32]) -> tuple[float, float]:
    """(y, x) in pixels from the upper left corner."""
    y, x = ((np.arange(n) + 0.5) for n in ink.shape)
    mass = ink.sum()
    return float((ink.sum(1) * y).sum() / mass), float((ink.sum(0) * x).sum() / mass)


def crop_and_resize(picture: Image.Image, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Crop the centre, resize to `shape` (C, H, W), and fill transparent parts with white."""
    channels, height, width = shape
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    converted = picture.convert("RGB" if channels == 3 else "L")
    fitted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(height, width, -1).transpose(2, 0, 1)
