"""Pictures of hand-drawn digits."""

import io

from PIL import Image, ImageDraw

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


def draw_digit(
    digit: int,
    *,
    size: tuple[int, int] = (200, 200),
    box: tuple[int, int, int] = (40, 40, 120),  # left, top, side
    width: int = 14,
    ink: object = 20,
    background: object = 245,
    mode: str = "L",
) -> Image.Image:
    """Draw a digit with a pen of `width` pixels, its strokes in the square `box` of the picture."""
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


def as_file(picture: Image.Image, form: str = "png", **options: object) -> io.BytesIO:
    """Return the picture as an open file in the format `form`. `options` are those of Pillow."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return file
