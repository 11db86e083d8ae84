"""MLflow's UI over a store: a real server, asked, ended."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.ui import free_port
from tests.helpers import engine
from tests.helpers.cli import ROOT, SMALL, environment, succeed

UI = [sys.executable, "-m", "mnist_sweep.ui", "--store"]


@contextmanager
def running(store: Path, port: str) -> Iterator[tuple[list[str], str]]:
    """The lines that the UI prints and its address, from its first answer to Ctrl-C."""
    ui = subprocess.Popen(
        [*UI, store, "--port", port],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = []
        while (line := ui.stdout.readline()) != "Ctrl-C ends it\n":
            assert line, "the server ended"
            lines.append(line)
        base = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines)).group()
        engine.wait_for(lambda: answers(f"{base}/health"))
        yield lines, base
    finally:
        os.kill(ui.pid, signal.SIGINT)
        ui.wait(30)


def test_ui_serves_the_runs_and_ends_with_all_its_children(store: Path) -> None:
    succeed(*SMALL, "model=mlp", store=store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running(store, port) as (lines, base):
            assert "is taken" in lines[0]
            assert not base.endswith(f":{port}")
            found = urlopen(
                f"{base}/api/2.0/mlflow/experiments/get-by-name?experiment_name=mnist_sweep"
            )
            assert b"mnist_sweep" in found.read()
    engine.wait_for(lambda: not answers(f"{base}/health"), 10)


def test_ui_without_runs_says_what_makes_one(fresh: Path) -> None:
    done = subprocess.run([*UI, fresh], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "holds no runs yet" in done.stderr
    assert not fresh.exists()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=3) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def test_port_that_is_taken_on_its_host_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port, "127.0.0.2") != port
        with pytest.raises(UserError, match=r"host=192.0.2.1: "):
            free_port(port, "192.0.2.1")
    assert f"port {port} is taken" in capfd.readouterr().out
