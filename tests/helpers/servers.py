"""Start servers, and the tools that serve pages, and stop them."""

import os
import re
import signal
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE
from urllib.request import urlopen

import psutil
import requests

from tests.helpers import cli, engine


def answers(url: str) -> bool:
    """Whether a server answers a request for `url` with status 200."""
    try:
        with urlopen(url, timeout=3) as page:
            return bool(page.status == 200)
    except OSError:
        return False


@contextmanager
def ui(store: Path, *arguments: str) -> Iterator[tuple[list[str], str]]:
    """Run the tool `ui`. Yield the lines that it prints, and its address; check that Ctrl-C ends it."""
    process = cli.start("ui", f"store={store}", *arguments, stdout=PIPE, start_new_session=True)
    try:
        lines = []
        while (line := process.stdout.readline()) != "Ctrl-C stops it\n":
            assert line, "the server ended"
            lines.append(line.strip())
        address = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(lines)).group()
        engine.wait_for(lambda: answers(f"{address}/health"))
        yield lines, address
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.wait(30)
    assert process.returncode == 0


@contextmanager
def demo(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run the tool `demo` on a free port. Check that it ends without an error.

    Yields:
        Its address and the id of its process.
    """
    process = cli.start("demo", "port=0", *arguments, stdout=PIPE, stderr=PIPE)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline()).group()
        engine.wait_for(lambda: answers(f"{address}/models"))
        yield address, process.pid
    finally:
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert not answers(f"{address}/models")


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Run an MLflow server with its database and its files in `folder`. Yield its address."""
    backend = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    backend += ["--artifacts-destination", str(folder / "served"), "--workers", "1"]
    listen = ["server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *listen, *backend],
        env=cli.environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        engine.wait_for(lambda: answers(f"{uri}/health"))
        yield uri
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def suspended(port: int) -> Iterator[Callable[[], None]]:
    """Suspend the MLflow server on a port: it accepts connections and answers nothing.

    Yields:
        A function that wakes it up, as the end of the block does.
    """
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if {"mlflow", "server", str(port)} <= set(command):
            processes += [process, *process.children(recursive=True)]
    assert processes, f"no server on port {port}"

    def wake() -> None:
        for process in processes:
            process.resume()

    for process in processes:
        process.suspend()
    try:
        yield wake
    finally:
        wake()


@contextmanager
def guarded(uri: str, user: str, password: str, token: str) -> Iterator[str]:
    """Run a proxy that passes on only requests with the user's password or the token. Yield its address."""
    basic = b64encode(f"{user}:{password}".encode()).decode()

    class Guard(BaseHTTPRequestHandler):
        def forward(self) -> None:
            if self.headers["Authorization"] not in (f"Basic {basic}", f"Bearer {token}"):
                self.send_error(401)
                return
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            kept = ("Content-Type", "Accept", "User-Agent")  # an empty file comes in chunks
            headers = {name: self.headers[name] for name in kept if name in self.headers}
            answer = requests.request(
                self.command, uri + self.path, data=body, headers=headers, timeout=60
            )
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
