"""MLflow's UI over a store, in a real server."""

import socket
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import optuna
import pytest

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.ui import find_free_port
from mnist_sweep.tracking.run import prepare, store_uri
from tests.helpers import engine
from tests.helpers.cli import SMALL, free_port, succeed, tool
from tests.helpers.servers import answers, ui


def test_ui_serves_the_runs_and_stops_with_its_children(store: Path) -> None:
    succeed(*SMALL, "model=mlp", store=store)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with ui(store, f"port={port}") as (lines, address):
            assert lines[0] == f"port {port} is taken, using another"
            assert not address.endswith(f":{port}")
            assert lines[1].startswith(f"all runs: {address}/#/")
            query = "experiment_name=mnist_sweep"
            found = urlopen(f"{address}/api/2.0/mlflow/experiments/get-by-name?{query}")
            assert b"mnist_sweep" in found.read()
    engine.wait_for(lambda: not answers(f"{address}/health"), 10)


def test_sweep_that_does_not_exist_is_an_error(store: Path) -> None:
    prepare(store_uri(None, str(store)), str(store), "mnist_sweep")
    done = tool("ui", "sweep=a,b", "port=0", store=store)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sweep=a: no such sweep; there is none\n"


def test_ui_without_runs_is_an_error(fresh: Path) -> None:
    done = tool("ui", store=fresh)
    assert done.returncode == 2
    assert done.stderr == f"error: {fresh} contains no runs; python -m mnist_sweep trains one\n"
    assert not fresh.exists()


def test_dashboard_without_a_sweep_is_an_error(store: Path) -> None:
    done = tool("ui", "dashboard=true", store=store)
    assert done.returncode == 2
    assert "contains no sweep" in done.stderr


def test_dashboard_answers_its_own_pages_and_no_other_site(store: Path) -> None:
    optuna.create_study(study_name="night", storage=f"sqlite:///{store}/optuna.db")

    def status(url: str, **headers: str) -> int:
        try:
            with urlopen(Request(url, headers=headers), timeout=20) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code

    with ui(store, "dashboard=true", f"port={free_port()}") as (lines, _):
        (page,) = [line.split()[1] for line in lines if line.startswith("optuna-dashboard: ")]
        studies = page.replace("/dashboard", "/api/studies")
        engine.wait_for(lambda: answers(page))
        assert b"night" in urlopen(studies).read()
        assert status(studies, Host="elsewhere.example") == 403
        assert status(studies, Origin="http://elsewhere.example") == 403
        assert status(studies, Origin=page.removesuffix("/dashboard")) == 200
    engine.wait_for(lambda: not answers(page))


def test_empty_host_is_an_error() -> None:
    with pytest.raises(UserError, match="host: expected an address"):
        find_free_port(0, "")


def test_taken_port_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        assert find_free_port(port, "127.0.0.2") != port
        with pytest.raises(UserError, match=r"host=192.0.2.1: "):
            find_free_port(port, "192.0.2.1")
    assert f"port {port} is taken" in capfd.readouterr().out
