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
from tests.helpers.pictures import STROKES, as_file, draw_digit
from tests.helpers.trained import store

SHAPE = (1, 28, 28)
COLOURED = {"mode": "RGB", "ink": (30, 40, 140), "background": (235, 228, 205)}
CASES = {
    **{f"plain {d}": (draw_digit(d), d) for d in STROKES},
    "thick": (draw_digit(0, width=26), 0),
    "thin": (draw_digit(1, width=4), 1),
    "thin 3": (draw_digit(3, width=6), 3),
    "in a corner": (draw_digit(7, box=(5, 5, 60), width=8), 7),
    "far right": (draw_digit(4, size=(500, 200), box=(380, 60, 100), width=12), 4),
    "small in a large picture": (draw_digit(2, size=(900, 900), box=(700, 600, 130), width=14), 2),
    "light on dark": (draw_digit(3, ink=250, background=10), 3),
    "light on dark, thick": (draw_digit(8, ink=250, background=10, width=18), 8),
    "grey background": (draw_digit(0, ink=60, background=150), 0),
    "pale": (draw_digit(7, ink=170, background=215), 7),
    "coloured": (draw_digit(2, **COLOURED), 2),
    "coloured, wide": (draw_digit(3, size=(400, 160), box=(150, 20, 120), **COLOURED), 3),
    "transparent": (draw_digit(1, mode="RGBA", ink=(0, 0, 0, 255), background=(0, 0, 0, 0)), 1),
    "transparent, light": (
        draw_digit(4, mode="RGBA", ink=(255, 255, 255, 255), background=(0, 0, 0, 0)),
        4,
    ),
    "palette": (draw_digit(8, width=16).convert("P"), 8),
    "one bit": (draw_digit(0, ink=0, background=255).convert("1"), 0),
    "16 bit": (Image.fromarray(np.asarray(draw_digit(3), np.uint16) * 200), 3),
}


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
    picture = draw_digit(7)
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
