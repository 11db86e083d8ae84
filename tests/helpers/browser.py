"""A page in Chromium that notes its requests and its errors."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from tests.helpers.pictures import STROKES

CHROMIUM = shutil.which("chromium")


class Watcher:
    """Notes what a page requests and the errors that it reports."""

    def __init__(self, page: Page) -> None:
        self.requests: list[str] = []  # URLs
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)


@contextmanager
def open_page(
    width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[tuple[Page, Watcher]]:
    """Open an empty page. `scheme` is the user's preference: light or dark."""
    if CHROMIUM is None:
        pytest.skip("needs chromium: make test-browser installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            size = {"width": width, "height": height}
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.set_default_timeout(60_000)  # MLflow is slow on two cores
            yield page, Watcher(page)
        finally:
            browser.close()


def overflow_px(page: Page) -> int:
    """Return by how many pixels the page is wider than the window."""
    root = "document.documentElement"
    return int(page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


def screenshot(page: Page, name: str) -> None:
    """Save a picture for the documentation if MNIST_SWEEP_SCREENSHOTS names a folder."""
    if folder := os.environ.get("MNIST_SWEEP_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def draw(page: Page, digit: int) -> None:
    """Clear the canvas of the demo and draw a digit with the mouse."""
    page.locator("#clear").click()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    for stroke in STROKES[digit]:
        points = [
            (box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100)
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()
