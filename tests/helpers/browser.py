"""A page in Debian's Chromium: what it asked of the network, what it complained of."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium")


class Watched:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(60_000)  # on two cores MLflow takes its time
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )

    def picture(self, name: str, *, whole: bool = False) -> None:
        """For the documents, where MNIST_SWEEP_SCREENSHOTS names their folder."""
        if folder := os.environ.get("MNIST_SWEEP_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=whole)


@contextmanager
def opened(width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[Watched]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: make test-browser installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            size = {"width": width, "height": height}
            yield Watched(browser.new_page(viewport=size, color_scheme=scheme))
        finally:
            browser.close()
