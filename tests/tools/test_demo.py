"""The page to draw on: a real server, a real browser, strokes of the mouse."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from starlette.types import Receive, Scope, Send

from mnist_sweep.tools.demo.server import MAX_BYTES, make_server
from tests.helpers import engine
from tests.helpers.browser import draw, open_page, overflow_px, screenshot
from tests.helpers.cli import free_port
from tests.helpers.pictures import as_file, draw_digit
from tests.helpers.servers import demo
from tests.helpers.trained import store

DIGIT = as_file(draw_digit(7)).getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """The address and the process id of a demo."""
    with demo(f"store={store()}") as running:
        yield running


@pytest.fixture
def url(server: tuple[str, int]) -> str:
    return server[0]


def send(url: str, content: bytes) -> socket.socket:
    """Open a connection and send `content` over it."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(content)
    return connection


def receive(connection: socket.socket) -> tuple[int, str]:
    """Return the status and the body of the response."""
    with connection, connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def head(url: str, length: int, **headers: str) -> bytes:
    """Return the head of a request to classify a picture, as the page sends it, with `headers`."""
    lines = {"Host": url.removeprefix("http://"), "Origin": url, "Content-Length": str(length)}
    lines |= {"Content-Type": "image/png"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"POST /predict HTTP/1.1\r\n{text}\r\n".encode()


def post(url: str, body: bytes, **headers: str) -> tuple[int, str]:
    """Send a picture and return the status and the text of the response."""
    return receive(send(url, head(url, len(body), **headers) + body))


def test_picture_is_classified(url: str) -> None:
    status, text = post(url, DIGIT)
    assert status == 200, text
    response = json.loads(text)
    assert response["prepared"].startswith("data:image/png")
    assert np.argmax(response["predictions"][0]["probabilities"]) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable picture"),
        (b"text", "not a readable picture"),
        (DIGIT[:-40], "not a readable picture"),
        (b"BLP2" + bytes(range(200)), "not a readable picture"),
        (as_file(draw_digit(7), "avif").getvalue()[:-40], "not a readable picture"),
        (as_file(draw_digit(7), "eps").getvalue(), "not a readable picture"),
        (b"P5 100000 100000 255\n", "more than 50,000,000 pixels"),
    ],
)
def test_unreadable_picture_is_refused(url: str, content: bytes, message: str) -> None:
    status, text = post(url, content)
    assert status == 400
    assert message in text


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Host": "elsewhere.example"}, 403, "Host elsewhere.example"),
        ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, 403, "Host"),
        ({"Host": "[::1"}, 403, "Host"),
        ({"Host": "elsewhere.example@127.0.0.1"}, 403, "Host"),
        ({"Origin": "https://elsewhere.example"}, 403, "Origin https://elsewhere.example"),
        ({"Origin": "null"}, 403, "Origin null"),
        ({"Origin": "http://127.0.0.1:1"}, 403, "Origin http://127.0.0.1:1"),
        ({"Content_Type": "text/plain"}, 415, "Content-Type text/plain"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415, "expected image/png"),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415, "expected image/png"),
        ({"Content_Type": ""}, 415, "expected image/png"),
    ],
)
def test_request_of_another_site_is_refused(
    url: str, headers: dict[str, str], status: int, message: str
) -> None:
    got, text = post(url, DIGIT, **headers)
    assert got == status
    assert message in text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ""},  # not a browser
        {"Content_Type": "application/octet-stream"},
        {"Host": "localhost:1", "Origin": "http://localhost:1"},  # through a tunnel
        {"Host": "[::1]:1", "Origin": ""},
    ],
)
def test_request_of_the_page_or_a_program_is_answered(url: str, headers: dict[str, str]) -> None:
    status, text = post(url, DIGIT, **headers)
    assert status == 200, text


def test_too_large_body_is_refused(url: str) -> None:
    status, text = post(url, bytes(MAX_BYTES + 1))
    assert (status, json.loads(text)["detail"]) == (413, "expected at most 10,000,000 bytes")


def peak_memory(pid: int) -> int:
    """Return the largest amount of memory that a process has used, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text).group(1))


def test_large_pictures_are_decoded_one_at_a_time(server: tuple[str, int]) -> None:
    url, pid = server
    picture = as_file(Image.fromarray(np.zeros((7000, 7000), np.uint16))).getvalue()
    post(url, DIGIT)
    before = peak_memory(pid)
    with ThreadPoolExecutor(3) as pool:
        responses = list(pool.map(lambda _: post(url, picture), range(3)))
    assert [status for status, _ in responses] == [200] * 3
    assert peak_memory(pid) - before < 400_000  # three at once took 2,700,000


def test_client_that_leaves_harms_no_other(url: str) -> None:
    send(url, head(url, 1000) + DIGIT[:500]).close()
    send(url, head(url, len(DIGIT)) + DIGIT).close()
    send(url, b"nonsense\r\n\r\n").close()
    broken = head(url, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"zzz\r\n"
    assert receive(send(url, broken))[0] == 400
    assert post(url, DIGIT)[0] == 200  # the fixture checks that nothing was written to stderr


async def wait_for_body(_scope: Scope, receive: Receive, _send: Send) -> None:
    """ASGI application that reads the body of a request and answers nothing."""
    while (await receive()).get("more_body"):
        pass


def test_connection_of_a_slow_client_is_cut() -> None:
    server = make_server(wait_for_body, "127.0.0.1", port := free_port(), connection_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(server.run)
        try:
            engine.wait_for(lambda: server.started)
            url = f"http://127.0.0.1:{port}"
            sent = (b"", b"POST /predict HTTP/1.1\r\nHost: ", head(url, 1000) + b"1")
            for connection in [send(url, content) for content in sent]:
                with connection:
                    assert connection.recv(1) == b""  # the server has closed it
        finally:
            server.should_exit = True
        ended.result(20)


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
