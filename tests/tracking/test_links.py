"""Links to MLflow's UI, and the commands that serve it."""

from pathlib import Path

import pytest

from mnist_sweep.tools.command import compose_config
from mnist_sweep.tracking.config import UI_PORT
from mnist_sweep.tracking.links import comparison_link, runs_page
from mnist_sweep.tracking.run import store_uri


def test_link_of_the_own_store_names_the_tool_and_its_default_port(tmp_path: Path) -> None:
    store = str(tmp_path / "it's a store")
    link = comparison_link(store_uri(None, store), "1", "s", store)
    assert link.startswith("python -m mnist_sweep ui 'store=")
    cfg, _ = compose_config("ui", [], {})
    assert cfg.port == UI_PORT
    assert f"http://127.0.0.1:{cfg.port}{runs_page('1', 's')}" in link


def test_link_of_a_server_is_its_page() -> None:
    link = comparison_link("http://host:5001/", "1", "s", "mlruns")
    assert link == "http://host:5001" + runs_page("1", "s")


def test_link_of_a_database_names_mlflow_and_hides_the_password() -> None:
    link = comparison_link("postgresql://me:secret@host/db", "1", "s", "mlruns")
    assert link.startswith("mlflow ui --backend-store-uri")
    assert "secret" not in link


@pytest.mark.parametrize("sweep", [None, "a b"])
def test_page_is_filtered_by_sweep(sweep: str | None) -> None:
    page = runs_page("7", sweep)
    assert page.startswith("/#/experiments/7/runs?")
    assert ("searchFilter=tags.sweep%20%3D%20%27a%20b%27" in page) == (sweep is not None)
