"""Start the tools that serve pages, and stop them."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from urllib.request import urlopen

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
