"""The page to draw on: a real server, a real browser, strokes of the mouse."""

from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from mnist_sweep.tools.demo.server import MAX_BYTES
from tests.helpers.browser import draw, open_page, overflow_px, screenshot
from tests.helpers.servers import demo
from tests.helpers.trained import store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with demo(f"store={store()}") as address:
        yield address


def post(url: str, body: bytes) -> tuple[int, str]:
    """Send a picture and return the status and the text of the response."""
    try:
        with urlopen(Request(f"{url}/predict", data=body), timeout=20) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def test_bad_request_is_refused_and_harms_no_other(url: str) -> None:
    assert post(url, b"")[0] == 400
    assert "not a readable picture" in post(url, b"not a picture")[1]
    assert post(url, bytes(MAX_BYTES + 1))[0] == 413
    bomb = b"P5 100000 100000 255\n"  # its header declares 10,000,000,000 pixels
    assert post(url, bomb)[0] == 400
    foreign = Request(f"{url}/models", headers={"Host": "elsewhere.example"})
    with pytest.raises(HTTPError, match="400"):
        urlopen(foreign, timeout=20)
    grey = b"P5 28 28 255\n" + bytes(784)
    status, text = post(url, grey)
    assert status == 200, text
    assert '"prepared":"data:image/png' in text


@pytest.mark.browser
def test_drawn_digits_are_recognised(url: str) -> None:
    with open_page(width=1000, height=640) as (page, watcher):
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        for digit in (1, 7, 8):
            draw(page, digit)
            expect(page.locator(".predicted")).to_have_text(str(digit))
        screenshot(page, "demo")
        page.locator("#undo").click()
        expect(page.locator(".predicted")).to_have_text("")
        page.keyboard.press("r")
        expect(page.locator("#message")).to_contain_text("It is a ")
        page.set_input_files("#upload", {"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
        expect(page.locator("#message")).to_contain_text("Cannot read this file as a picture")
        servers = {each.split("/")[2] for each in watcher.requests if each.startswith("http")}
        assert servers == {url.removeprefix("http://")}
        assert watcher.errors == []


@pytest.mark.browser
def test_page_fits_a_phone_and_can_be_drawn_on(url: str) -> None:
    with open_page(width=360, height=740, scheme="dark") as (page, _):
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        assert overflow_px(page) <= 0
        draw(page, 1)
        expect(page.locator(".predicted")).to_have_text("1")
