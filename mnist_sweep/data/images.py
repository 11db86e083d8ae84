"""Any picture of a digit as an image of MNIST's kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist_sweep.common.errors import UserError

DIGITS = tuple("0123456789")
MAX_PIXELS = 50_000_000  # a larger picture is refused before it is unpacked
WORKING_SIZE = 560  # pixels of the longer side that are looked at
BOX, SIZE = 20, 28  # of LeCun's preparation: the digit in a box, the box in the image
FAINT = 0.15  # of the contrast, below which a pixel counts as background


def read(
    source: Path | BinaryIO, shape: Sequence[int], *, is_digit: bool = True
) -> NDArray[np.uint8]:
    """The picture as an image [C, H, W] for a model of this shape, prepared like MNIST if `is_digit`.

    Raises:
        UserError: it is no picture, a broken one, or too large.
    """
    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width} x {picture.height} pixels"
                raise UserError(f"{size} are more than {MAX_PIXELS:,}")
            upright = _eight_bits(ImageOps.exif_transpose(picture))
            upright.thumbnail((WORKING_SIZE, WORKING_SIZE))
            if is_digit and tuple(shape) == (1, SIZE, SIZE):
                return prepare(as_grey(upright))[None]
            return resize(upright, shape)
    except FileNotFoundError as error:
        raise UserError("no such file") from error
    except Image.DecompressionBombError as error:  # larger still: Pillow itself refuses
        raise UserError(f"more than {MAX_PIXELS:,} pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"no picture that can be read ({type(error).__name__})") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    if not picture.mode.startswith(("I", "F")):
        return picture
    deep = np.asarray(picture, np.float32)  # 16 bits and more: Pillow itself would cut them off
    return Image.fromarray(
        (255 * deep / max(float(deep.max()), 1e-6)).clip(0, 255).astype(np.uint8)
    )


def as_grey(picture: Image.Image) -> NDArray[np.float32]:
    """[H, W] in 0..1; what is transparent takes the colour of paper, or black under a light stroke."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        alpha = np.asarray(rgba)[..., 3] / np.float32(255)
        grey = np.asarray(rgba.convert("RGB").convert("L"), np.float32) / 255
        stroke = float((grey * alpha).sum() / max(alpha.sum(), 1e-6))
        paper = 0.0 if stroke > 0.5 else 1.0
        return (grey * alpha + paper * (1 - alpha)).astype(np.float32)
    return np.asarray(picture.convert("L")).astype(np.float32) / np.float32(255)


def prepare(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[H, W] in 0..1 -> [28, 28], light on black, as MNIST's authors did (LeCun et al. 1998).

    The digit is scaled into a box of 20 x 20 with its aspect kept, and the box laid into the image
    with the digit's centre of mass in the middle. The paper is what most of the border shows. An
    image that is of this kind already stays as it is; one without contrast becomes black.
    """
    if grey.shape == (SIZE, SIZE) and _is_prepared(grey):
        return (grey * 255).round().astype(np.uint8)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    contrast = float(ink.max())
    if contrast < 0.05:  # blank paper
        return np.zeros((SIZE, SIZE), np.uint8)
    ink /= contrast
    ink[ink < FAINT] = 0
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    digit = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = BOX / max(digit.size)
    size = (max(1, round(digit.width * scale)), max(1, round(digit.height * scale)))
    smoothly = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(digit.resize(size, smoothly))
    small = (small / small.max()).astype(np.float32)
    canvas = np.zeros((SIZE, SIZE), np.float32)
    top, left = (
        int(np.clip(round(SIZE / 2 - c), 0, SIZE - n))
        for c, n in zip(_centre_of_mass(small), small.shape, strict=True)
    )
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return (canvas * 255).round().astype(np.uint8)


def _is_prepared(grey: NDArray[np.float32]) -> bool:
    """Light on a black border, in a box of 20, its centre of mass in the middle."""
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


def resize(picture: Image.Image, shape: Sequence[int]) -> NDArray[np.uint8]:
    """[C, H, W]: the middle square, on white, for models of pictures other than digits."""
    channels, height, width = shape
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    converted = picture.convert("RGB" if channels == 3 else "L")
    fitted = ImageOps.fit(converted, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted, np.uint8).reshape(height, width, -1).transpose(2, 0, 1)
