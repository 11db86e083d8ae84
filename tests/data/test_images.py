"""Pictures as people make them, prepared as MNIST's were, and recognised by a model trained here."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mnist_sweep.common.errors import UserError
from mnist_sweep.data import images
from mnist_sweep.data.dataset import embedded_mnist
from tests.helpers.trained import store

SHAPE = (1, 28, 28)
# Strokes of each digit in a square of 100.
STROKES = {
    0: [[(50, 10), (30, 25), (27, 50), (32, 76), (50, 90), (69, 76), (73, 50), (69, 24), (50, 10)]],
    1: [[(52, 10), (50, 50), (48, 90)]],
    2: [[(28, 28), (40, 12), (62, 12), (70, 30), (58, 52), (28, 88), (74, 88)]],
    3: [[(30, 14), (66, 12), (46, 44), (68, 58), (66, 80), (46, 90), (28, 82)]],
    4: [[(34, 10), (28, 52), (74, 52)], [(64, 14), (62, 90)]],
    7: [[(26, 14), (74, 14), (46, 90)]],
    8: [[(64, 22), (50, 10), (36, 24), (50, 46), (66, 68), (50, 90), (34, 70), (50, 48), (64, 24)]],
}


def drawn(
    digit: int,
    *,
    size: tuple[int, int] = (200, 200),
    box: tuple[int, int, int] = (40, 40, 120),  # left, top, side
    width: int = 14,
    ink: object = 20,
    paper: object = 245,
    mode: str = "L",
) -> Image.Image:
    picture = Image.new(mode, size, paper)
    pen = ImageDraw.Draw(picture)
    left, top, side = box
    for stroke in STROKES[digit]:
        points = [(left + x * side / 100, top + y * side / 100) for x, y in stroke]
        pen.line(points, fill=ink, width=width, joint="curve")
        for x, y in points:  # round ends
            r = width / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    return picture


COLOURED = {"mode": "RGB", "ink": (30, 40, 140), "paper": (235, 228, 205)}
CASES = {
    **{f"plain {d}": (drawn(d), d) for d in STROKES},
    "thick": (drawn(0, width=26), 0),
    "thin": (drawn(1, width=4), 1),
    "thin 3": (drawn(3, width=6), 3),
    "in a corner": (drawn(7, box=(5, 5, 60), width=8), 7),
    "far right": (drawn(4, size=(500, 200), box=(380, 60, 100), width=12), 4),
    "small in a large picture": (drawn(2, size=(900, 900), box=(700, 600, 130), width=14), 2),
    "light on dark": (drawn(3, ink=250, paper=10), 3),
    "light on dark, thick": (drawn(8, ink=250, paper=10, width=18), 8),
    "grey background": (drawn(0, ink=60, paper=150), 0),
    "pale": (drawn(7, ink=170, paper=215), 7),
    "coloured": (drawn(2, **COLOURED), 2),
    "coloured, wide": (drawn(3, size=(400, 160), box=(150, 20, 120), **COLOURED), 3),
    "transparent": (drawn(1, mode="RGBA", ink=(0, 0, 0, 255), paper=(0, 0, 0, 0)), 1),
    "transparent, light": (drawn(4, mode="RGBA", ink=(255, 255, 255, 255), paper=(0, 0, 0, 0)), 4),
    "palette": (drawn(8, width=16).convert("P"), 8),
    "one bit": (drawn(0, ink=0, paper=255).convert("1"), 0),
    "16 bit": (Image.fromarray(np.asarray(drawn(3), np.uint16) * 200), 3),
}


def as_file(picture: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, "png")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def model():
    from mnist_sweep.tools.trained_model import _from_checkpoint

    (best,) = store().rglob("best.pt")
    return _from_checkpoint(best.parent)


@pytest.mark.parametrize("case", CASES)
def test_hand_made_digits_are_recognised(case: str, model) -> None:
    picture, digit = CASES[case]
    prepared = images.read(as_file(picture), SHAPE)
    assert model.classes[model.probabilities(prepared[None])[0].argmax()] == str(digit)


@pytest.mark.parametrize("case", CASES)
def test_prepared_is_light_on_black_in_its_box_and_centred(case: str) -> None:
    prepared = images.read(as_file(CASES[case][0]), SHAPE)[0]
    assert prepared.max() == 255
    rows, columns = np.flatnonzero(prepared.any(1)), np.flatnonzero(prepared.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    ys, xs = np.indices((28, 28)) + 0.5
    mass = prepared.sum()
    assert abs((ys * prepared).sum() / mass - 14) <= 0.8
    assert abs((xs * prepared).sum() / mass - 14) <= 0.8


def test_image_of_mnist_stays_as_it_is() -> None:
    found = embedded_mnist().train_images[::25, 0]
    same = [np.array_equal(images.prepare(i.astype(np.float32) / 255), i) for i in found]
    assert np.mean(same) > 0.95


def test_blank_paper_is_black() -> None:
    assert not images.read(as_file(Image.new("L", (50, 80), 200)), SHAPE).any()


def test_models_of_other_images_get_the_middle_square() -> None:
    picture = Image.new("RGB", (90, 30), (255, 0, 0))
    assert images.read(as_file(picture), (3, 10, 10)).tolist() == [
        [[value] * 10] * 10 for value in (255, 0, 0)
    ]


def test_turned_photographs_are_turned_back(tmp_path: Path) -> None:
    picture = drawn(7)
    exif = picture.getexif()
    exif[0x112] = 6  # the camera was held upright
    picture.rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned, straight = images.read(tmp_path / "a.jpg", SHAPE), images.read(as_file(picture), SHAPE)
    assert np.abs(turned.astype(int) - straight).mean() < 10


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"text", "no picture"), (b"P5 9000 9000 255\n", "more than"), (b"", "no picture")],
)
def test_what_is_no_picture_is_refused(content: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told):
        images.read(io.BytesIO(content), SHAPE)


def test_printed_digits_keep_their_aspect() -> None:
    picture = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(picture).text((100, 60), "1", fill=0, font=ImageFont.load_default(160))
    prepared = images.read(as_file(picture), SHAPE)[0]
    height, width = (np.ptp(np.flatnonzero(prepared.any(axis))) + 1 for axis in (1, 0))
    assert height == 20
    assert width < 15
