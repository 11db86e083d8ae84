"""Links to MLflow's UI, and the commands that serve it."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from mnist_sweep.tools.command import compose_config
from mnist_sweep.tracking import view
from mnist_sweep.tracking.config import UI_PORT
from mnist_sweep.tracking.links import comparison_link, runs_page, ui_links
from mnist_sweep.tracking.run import prepare, start_run, store_uri


def test_link_of_the_own_store_names_the_tool_and_its_default_port(tmp_path: Path) -> None:
    store = str(tmp_path / "it's a store")
    link = comparison_link(store_uri(None, store), "1", "s", store)
    assert link.startswith("python -m mnist_sweep ui 'store=")
    cfg, _ = compose_config("ui", [], {})
    assert cfg.port == UI_PORT
    assert f"http://127.0.0.1:{cfg.port}{runs_page('1', ['s'])}" in link


def test_link_of_a_server_is_its_page() -> None:
    link = comparison_link("http://host:5001/", "1", "s", "mlruns")
    assert link == "http://host:5001" + runs_page("1", ["s"])


def test_link_of_a_database_names_mlflow_and_hides_the_password() -> None:
    link = comparison_link("postgresql://me:secret@host/db", "1", "s", "mlruns")
    assert link.startswith("mlflow ui --backend-store-uri")
    assert "secret" not in link


def test_page_of_sweeps_opens_their_shared_view() -> None:
    plain, one, two = (runs_page("7", sweeps) for sweeps in ([], ["a+b"], ["a+b", "c"]))
    assert plain.startswith("/#/experiments/7/runs?")
    assert one == f"{plain}&viewStateShareKey={view.key(['a+b'])}"
    assert two == f"{plain}&viewStateShareKey={view.key(['a+b', 'c'])}"
    assert one != two


def test_store_that_cannot_be_written_has_links_all_the_same(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = store_uri(None, str(store))
    experiment_id = prepare(uri, str(store), "mnist_sweep")
    with start_run(uri, experiment_id, name=None, tags={"kind": "sweep", "sweep": "s"}, params={}):
        pass
    refuse = "BEFORE INSERT ON experiment_tags BEGIN SELECT RAISE(ABORT, 'read-only'); END"
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.execute(f"CREATE TRIGGER refuse {refuse}")
    assert list(ui_links(uri, 5000, [])) == ["all runs", "sweep s"]
    assert "the page of sweep s was not renewed: " in caplog.text
    assert "read-only" in caplog.text
