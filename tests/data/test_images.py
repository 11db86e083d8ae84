"""Preparation of pictures: drawn digits of many kinds, checked by geometry and by a trained model."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


NOT_READABLE = "not a readable picture"


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    """Return the bytes of a picture in a file format."""
    return as_file(picture, form, **options).getvalue()


SMALL = draw_digit(3, size=(60, 50), box=(5, 5, 40), width=4)
FORMATS = ("png", "jpeg", "bmp", "gif", "ppm", "webp", "tiff")
TRUNCATED = {form: encoded(SMALL, form)[:-40] for form in FORMATS}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", NOT_READABLE),
        (b"text", "expected PNG, JPEG, BMP, GIF, PPM, TIFF, WEBP"),
        (b"P5 9000 9000 255\n", "9000 x 9000 pixels are more than 50,000,000"),
        (b"P5 100000 100000 255\n", "more than 50,000,000 pixels"),
        (b"P5 0 0 255\n", NOT_READABLE),
        (encoded(Image.new("L", (5000, 5000)), "webp"), "more than 20,000,000"),
        (TRUNCATED["png"], NOT_READABLE),
        (TRUNCATED["jpeg"], NOT_READABLE),
        (TRUNCATED["bmp"], NOT_READABLE),
        (TRUNCATED["ppm"], NOT_READABLE),
        (TRUNCATED["webp"], NOT_READABLE),
        (TRUNCATED["tiff"], NOT_READABLE),
        (encoded(SMALL, "gif")[:40], NOT_READABLE),
        (b"BLP2" + bytes(range(200)), NOT_READABLE),
        (encoded(SMALL, "avif")[:-40], NOT_READABLE),
        (encoded(SMALL, "eps"), NOT_READABLE),
    ],
)
def test_unreadable_and_huge_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        images.read_image(io.BytesIO(content), SHAPE)


def test_decoder_that_fails_in_its_own_way_is_refused() -> None:
    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise RuntimeError

    with pytest.raises(UserError, match=r"not a readable picture \(RuntimeError\)"):
        images.read_image(Broken(), SHAPE)


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.new("L", (1, 1), 255), "png"),
        encoded(Image.new("RGB", (50_000, 1), (250, 240, 230)), "png"),
        encoded(Image.new("I;16", (50_000, 1), 9), "png"),
        encoded(Image.new("1", (1, 50_000)), "png"),
        encoded(SMALL.convert("CMYK"), "jpeg"),
        encoded(SMALL.convert("LA"), "png"),
        encoded(SMALL.convert("F"), "tiff"),
        encoded(Image.new("F", (9, 9), float("nan")), "tiff"),
        encoded(Image.new("F", (9, 9), 3e38), "tiff"),
        encoded(SMALL.convert("P"), "png", transparency=bytes(range(256))),
        encoded(SMALL, "gif", save_all=True, append_images=[SMALL.rotate(90)]),
        encoded(SMALL, "webp", save_all=True, append_images=[SMALL.rotate(90)]),
    ],
)
@pytest.mark.parametrize("shape", [SHAPE, (3, 10, 10)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pictures_of_unusual_sizes_and_modes_are_read(
    content: bytes, shape: tuple[int, int, int]
) -> None:
    prepared = images.read_image(io.BytesIO(content), shape)
    assert (prepared.shape, prepared.dtype) == (shape, np.uint8)


@given(
    st.sampled_from([encoded(SMALL.convert(m), f) for f in FORMATS for m in ("1", "L", "RGB")]),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(max_size=4), st.integers(0, 4))),
    st.integers(0, 5000),
)
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_file_is_read_or_refused(
    valid: bytes, changes: list[tuple[int, bytes, int]], n_lost: int
) -> None:
    content = bytearray(valid)
    for place, inserted, n_removed in changes:
        start = place % len(valid)
        content[start : start + n_removed] = inserted
    if n_lost < len(content):
        del content[len(content) - n_lost :]
    try:
        prepared = images.read_image(io.BytesIO(bytes(content)), SHAPE)
    except UserError:
        return
    assert (prepared.shape, prepared.dtype) == (SHAPE, np.uint8)


def test_large_pictures_take_little_memory() -> None:
    """One byte of these files becomes 500 bytes of pixels and more."""
    program = (
        "import io, sys; from mnist_sweep.data.images import read_image\n"
        "read_image(io.BytesIO(sys.stdin.buffer.read()), (1, 28, 28))\n"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    for content in (
        encoded(Image.fromarray(np.zeros((7000, 7000), np.uint16)), "png"),
        encoded(Image.new("RGBA", (4400, 4400)), "webp", lossless=True),
    ):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, input=content, capture_output=True, check=True)
        assert int(done.stdout.split()[1]) < 500_000, content[:4]  # KiB; Python itself takes 50,000


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let the system check permissions, which it does not do for root."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_path_that_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("none")
    for name in ("fifo", "folder", "loop", "broken"):
        with pytest.raises(UserError, match="not a regular file"):
            images.read_image(tmp_path / f"{name}.png", SHAPE)
    for name in ("none.png", "x" * 300):
        with pytest.raises(UserError, match="no such file"):
            images.read_image(tmp_path / name, SHAPE)
    with (tmp_path / "sparse.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
        file.truncate(30_000_000_000)
    with pytest.raises(UserError, match="more than 1,000,000,000 bytes"):
        images.read_image(tmp_path / "sparse.webp", SHAPE)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    (tmp_path / "secret.png").write_bytes(encoded(SMALL, "png"))
    (tmp_path / "secret.png").chmod(0)
    with unprivileged(), pytest.raises(UserError, match="Permission denied"):
        images.read_image(tmp_path / "secret.png", SHAPE)


def test_image_files_are_those_of_all_subfolders(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpg", "a/x.png/d.gif", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in images.image_files(tmp_path)]
    assert found == ["a/c.jpg", "a/x.png/d.gif", "b.PNG"]
    tmp_path.chmod(0o755)
    (tmp_path / "a").chmod(0)
    with unprivileged(), pytest.raises(UserError, match=f"{tmp_path}/a: Permission denied"):
        images.image_files(tmp_path)
    (tmp_path / "a").chmod(0o755)


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
