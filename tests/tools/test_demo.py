"""The drawing page: a real server, a real browser, strokes of a mouse."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect
from test_ui import answers

from mnist_sweep.tools.demo.server import MAX_BYTES
from tests.helpers import engine
from tests.helpers.browser import opened
from tests.helpers.cli import ROOT, environment
from tests.helpers.trained import store

# Strokes in hundredths of the paper.
DIGITS = {
    "1": [[(52, 18), (51, 50), (50, 82)]],
    "7": [[(28, 22), (50, 22), (72, 22), (62, 42), (52, 62), (44, 82)]],
    "8": [
        [
            *((62, 24), (50, 17), (38, 26), (42, 40), (52, 48), (64, 60), (62, 76), (50, 84)),
            *((38, 76), (38, 60), (50, 48), (62, 38), (64, 27), (60, 22)),
        ]
    ],
}


@contextmanager
def served(*arguments: str) -> Iterator[str]:
    """The address of a demo, which ends without a word."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "mnist_sweep.demo", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", demo.stdout.readline()).group()
        engine.wait_for(lambda: answers(f"{found}/models"))
        yield found
    finally:
        os.kill(demo.pid, signal.SIGINT)
        _, complaints = demo.communicate(timeout=20)
    assert (demo.returncode, complaints) == (0, "")
    assert not answers(f"{found}/models")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(f"store={store()}", "port=7931") as found:
        yield found


def ask(url: str, body: bytes) -> tuple[int, str]:
    try:
        with urlopen(Request(f"{url}/predict", data=body), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_bad_requests_are_told_so_and_harm_nothing(url: str) -> None:
    assert ask(url, b"")[0] == 400
    assert "no picture" in ask(url, b"not a picture")[1]
    assert ask(url, bytes(MAX_BYTES + 1))[0] == 413
    bomb = b"P5 100000 100000 255\n"  # ten thousand million pixels, it says
    assert ask(url, bomb)[0] == 400
    foreign = Request(f"{url}/models", headers={"Host": "elsewhere.example"})
    with pytest.raises(HTTPError, match="400"):
        urlopen(foreign, timeout=20)
    grey = b"P5 28 28 255\n" + bytes(784)
    status, answer = ask(url, grey)
    assert status == 200, answer
    assert '"prepared":"data:image/png' in answer


def test_without_a_model_it_says_what_makes_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_sweep.demo", f"store={tmp_path / 'none'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("python -m mnist_sweep trains one\n")


def draw(page: Page, digit: str) -> None:
    page.locator("#clear").click()
    box = page.locator("#paper").bounding_box()
    for stroke in DIGITS[digit]:
        points = [
            (box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100)
            for x, y in stroke
        ]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=6)
        page.mouse.up()


@pytest.mark.browser
def test_drawn_digits_are_recognised(url: str) -> None:
    with opened(width=1000, height=640) as seen:
        page = seen.page
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        for digit in DIGITS:
            draw(page, digit)
            expect(page.locator(".said")).to_have_text(digit)
            seen.picture("demo")  # of the last
        page.locator("#undo").click()
        expect(page.locator(".said")).to_have_text("")
        page.keyboard.press("r")
        expect(page.locator("#told")).to_contain_text("It is a ")
        page.set_input_files("#upload", {"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
        expect(page.locator("#told")).to_contain_text("no picture that can be read")
        assert {
            request.split("/")[2] for request in seen.requests if request.startswith("http")
        } == {url.removeprefix("http://")}
        assert seen.complaints == []


@pytest.mark.browser
def test_page_fits_a_phone_and_takes_a_finger(url: str) -> None:
    with opened(width=360, height=740, scheme="dark") as seen:
        seen.page.goto(url)
        seen.page.wait_for_selector("body[data-ready]")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert seen.page.evaluate(wide) <= 0
        draw(seen.page, "1")
        expect(seen.page.locator(".said")).to_have_text("1")
