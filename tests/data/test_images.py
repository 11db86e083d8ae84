"""Preparation of pictures: drawn digits of many kinds, checked by geometry and by a trained model."""

import io
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image, ImageDraw, ImageFont

from mnist_sweep.common.errors import UserError
from mnist_sweep.data import images
from mnist_sweep.data.sources import embedded_mnist
from tests.helpers.trained import store

SHAPE = (1, 28, 28)
# Strokes of each digit, as points (x, y) in a square of 100 x 100.
STROKES = {
    0: [[(50, 10), (30, 25), (27, 50), (32, 76), (50, 90), (69, 76), (73, 50), (69, 24), (50, 10)]],
    1: [[(52, 10), (50, 50), (48, 90)]],
    2: [[(28, 28), (40, 12), (62, 12), (70, 30), (58, 52), (28, 88), (74, 88)]],
    3: [[(30, 14), (66, 12), (46, 44), (68, 58), (66, 80), (46, 90), (28, 82)]],
    4: [[(34, 10), (28, 52), (74, 52)], [(64, 14), (62, 90)]],
    7: [[(26, 14), (74, 14), (46, 90)]],
    8: [[(64, 22), (50, 10), (36, 24), (50, 46), (66, 68), (50, 90), (34, 70), (50, 48), (64, 24)]],
}


def draw(
    digit: int,
    *,
    size: tuple[int, int] = (200, 200),
    box: tuple[int, int, int] = (40, 40, 120),  # left, top, side
    width: int = 14,
    ink: object = 20,
    background: object = 245,
    mode: str = "L",
) -> Image.Image:
    picture = Image.new(mode, size, background)
    pen = ImageDraw.Draw(picture)
    left, top, side = box
    for stroke in STROKES[digit]:
        points = [(left + x * side / 100, top + y * side / 100) for x, y in stroke]
        pen.line(points, fill=ink, width=width, joint="curve")
        for x, y in points:  # round ends
            r = width / 2
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    return picture


COLOURED = {"mode": "RGB", "ink": (30, 40, 140), "background": (235, 228, 205)}
CASES = {
    **{f"plain {d}": (draw(d), d) for d in STROKES},
    "thick": (draw(0, width=26), 0),
    "thin": (draw(1, width=4), 1),
    "thin 3": (draw(3, width=6), 3),
    "in a corner": (draw(7, box=(5, 5, 60), width=8), 7),
    "far right": (draw(4, size=(500, 200), box=(380, 60, 100), width=12), 4),
    "small in a large picture": (draw(2, size=(900, 900), box=(700, 600, 130), width=14), 2),
    "light on dark": (draw(3, ink=250, background=10), 3),
    "light on dark, thick": (draw(8, ink=250, background=10, width=18), 8),
    "grey background": (draw(0, ink=60, background=150), 0),
    "pale": (draw(7, ink=170, background=215), 7),
    "coloured": (draw(2, **COLOURED), 2),
    "coloured, wide": (draw(3, size=(400, 160), box=(150, 20, 120), **COLOURED), 3),
    "transparent": (draw(1, mode="RGBA", ink=(0, 0, 0, 255), background=(0, 0, 0, 0)), 1),
    "transparent, light": (
        draw(4, mode="RGBA", ink=(255, 255, 255, 255), background=(0, 0, 0, 0)),
        4,
    ),
    "palette": (draw(8, width=16).convert("P"), 8),
    "one bit": (draw(0, ink=0, background=255).convert("1"), 0),
    "16 bit": (Image.fromarray(np.asarray(draw(3), np.uint16) * 200), 3),
}


def as_file(picture: Image.Image) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, "png")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def model():
    """The trained model of `tests.helpers.trained`."""
    from mnist_sweep.tools.trained_model import load_model

    (best,) = store().rglob("best.pt")
    cfg = {"store": str(store()), "tracking": {"uri": None}}
    return load_model(OmegaConf.create(cfg), str(best))


@pytest.mark.parametrize("case", CASES)
def test_drawn_digits_are_recognised(case: str, model) -> None:
    picture, digit = CASES[case]
    prepared = images.read_image(as_file(picture), SHAPE)
    assert model.classes[model.probabilities(prepared[None])[0].argmax()] == str(digit)


@pytest.mark.parametrize("case", CASES)
def test_prepared_digit_is_light_fits_its_box_and_is_centred(case: str) -> None:
    prepared = images.read_image(as_file(CASES[case][0]), SHAPE)[0]
    assert prepared.max() == 255
    rows, columns = np.flatnonzero(prepared.any(1)), np.flatnonzero(prepared.any(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    ys, xs = np.indices((28, 28)) + 0.5
    mass = prepared.sum()
    assert abs((ys * prepared).sum() / mass - 14) <= 0.8
    assert abs((xs * prepared).sum() / mass - 14) <= 0.8


def test_mnist_image_is_returned_unchanged() -> None:
    sample = embedded_mnist().train_images[::25, 0]
    same = [np.array_equal(images.prepare_digit(i.astype(np.float32) / 255), i) for i in sample]
    assert np.mean(same) > 0.95


def test_blank_picture_becomes_black() -> None:
    assert not images.read_image(as_file(Image.new("L", (50, 80), 200)), SHAPE).any()


def test_other_pictures_are_cropped_at_the_centre_and_resized() -> None:
    picture = Image.new("RGB", (90, 30), (255, 0, 0))
    assert images.read_image(as_file(picture), (3, 10, 10)).tolist() == [
        [[value] * 10] * 10 for value in (255, 0, 0)
    ]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = draw(7)
    exif = picture.getexif()
    exif[0x112] = 6  # the camera was held upright
    picture.rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned, straight = (
        images.read_image(tmp_path / "a.jpg", SHAPE),
        images.read_image(as_file(picture), SHAPE),
    )
    assert np.abs(turned.astype(int) - straight).mean() < 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "not a readable picture"),
        (b"P5 9000 9000 255\n", "more than"),
        (b"", "not a readable picture"),
    ],
)
def test_unreadable_and_huge_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.read_image(io.BytesIO(content), SHAPE)


def test_printed_digit_keeps_its_aspect_ratio() -> None:
    picture = Image.new("L", (300, 300), 255)
    ImageDraw.Draw(picture).text((100, 60), "1", fill=0, font=ImageFont.load_default(160))
    prepared = images.read_image(as_file(picture), SHAPE)[0]
    height, width = (np.ptp(np.flatnonzero(prepared.any(axis))) + 1 for axis in (1, 0))
    assert height == 20
    assert width < 15


def test_file_of_another_format_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow starts Ghostscript for EPS content, whatever the file's suffix says."""
    started = tmp_path / "started"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {started}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    path = tmp_path / "digit.png"
    Image.new("RGB", (28, 28)).save(path, "EPS")
    with pytest.raises(UserError, match="not a readable picture"):
        images.read_image(path, SHAPE)
    assert not started.exists()
