"""Finding runs."""

import contextlib
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException

from mnist_sweep.common.errors import UserError
from mnist_sweep.tracking import queries
from mnist_sweep.tracking.run import prepare, start_run, store_uri


@pytest.fixture
def opened(store: Path) -> tuple[str, str]:
    """Return the URI and the experiment of an empty MLflow store."""
    uri = store_uri(None, str(store))
    return uri, prepare(uri, str(store), "mnist_sweep")


def record(opened: tuple[str, str], metrics: dict[str, float], **tags: str) -> str:
    """Record a finished run and return its id."""
    with start_run(*opened, name=None, tags=tags, params={}) as run:
        run.log_metrics(metrics, step=1)
    return run.run_id


def test_runs_are_found_over_several_pages(opened: tuple[str, str]) -> None:
    uri, experiment_id = opened
    ids = [record(opened, {"score": i}, kind="x") for i in range(5)]
    record(opened, {"score": 9}, kind="other")
    query = queries.tag_is("kind", "x")
    found = queries.find_runs(
        MlflowClient(uri), [experiment_id], query, order="metrics.score ASC", page_size=2
    )
    assert [run.info.run_id for run in found] == ids


@pytest.mark.parametrize("sweep", ["it's", 'say "x"', "a, b"])
def test_names_with_quotes_are_found(opened: tuple[str, str], sweep: str) -> None:
    run_id = record(opened, {"test/loss": 1.0}, sweep=sweep, trial="0")
    assert [run.info.run_id for run in queries.trained_runs(*opened, sweep)] == [run_id]
    best = queries.best_runs_of(opened[0], "mnist_sweep", sweep, [1, 0])
    assert {number: run.info.run_id for number, run in best.items()} == {0: run_id}


def test_name_with_both_quotes_is_refused() -> None:
    with pytest.raises(UserError, match="expected a name without both"):
        queries.tag_is("sweep", """it's "x\"""")


def test_pruned_runs_and_runs_of_tools_are_not_trained_runs(opened: tuple[str, str]) -> None:
    record(opened, {"val/loss": 1.0}, sweep="s")  # pruned
    first = record(opened, {"test/loss": 1.0}, sweep="s")
    second = record(opened, {"test/loss": 2.0}, sweep="s")
    runs = queries.trained_runs(*opened, "s")
    assert [run.info.run_id for run in runs] == [first, second]
    assert queries.newest_trained_run(opened[0]) is None  # none logged a model


def test_missing_store_is_not_created(tmp_path: Path) -> None:
    uri = store_uri(None, str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist: no run was recorded"):
        queries.newest_trained_run(uri)
    assert not list(tmp_path.iterdir())


def test_sweeps_are_found_by_name_and_by_default_the_last(opened: tuple[str, str]) -> None:
    uri, experiment_id = opened
    client, ids = MlflowClient(uri), [experiment_id]
    assert queries.sweeps(client, ids, []) == []
    for name in ("a", "b", "c"):
        record(opened, {}, kind="sweep", sweep=name)
    record(opened, {}, sweep="d", trial="0")

    def names(*wanted: str) -> list[str]:
        return [run.data.tags["sweep"] for run in queries.sweeps(client, ids, wanted)]

    assert names() == ["c"]
    assert names("b", "a", "b") == ["b", "a"]
    with pytest.raises(UserError, match="sweep=d: no such sweep; the last is c"):
        names("a", "d")


def test_sweeps_of_two_experiments_have_no_common_page(
    store: Path, opened: tuple[str, str]
) -> None:
    uri, experiment_id = opened
    other = prepare(uri, str(store), "other")
    record(opened, {}, kind="sweep", sweep="a")
    record((uri, other), {}, kind="sweep", sweep="b")
    with pytest.raises(UserError, match="sweep=a,b: expected sweeps of one experiment"):
        queries.sweeps(MlflowClient(uri), [experiment_id, other], ["a", "b"])


@pytest.mark.parametrize("is_own", [True, False])
def test_files_of_a_model_are_deleted_only_below_the_store(
    opened: tuple[str, str], store: Path, tmp_path: Path, is_own: bool
) -> None:
    """Others may write to the store, which names a folder for each model."""
    uri, experiment_id = opened
    client = MlflowClient(uri)
    with start_run(*opened, name=None, tags={"sweep": "s", "trial": "0"}, params={}) as run:
        model = client.create_logged_model(experiment_id, source_run_id=run.run_id)
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    folder = store / "artifacts" / "m" if is_own else tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    for location in (folder.as_uri(), f"file://{store}/artifacts/../../elsewhere"):
        with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database, database:
            database.execute("UPDATE logged_models SET artifact_location = ?", [location])
            database.execute("UPDATE logged_models SET lifecycle_stage = 'active'")
        queries.delete_models_of_sweep(uri, "mnist_sweep", "s", set(), store / "artifacts")
        with pytest.raises(MlflowException):
            client.get_logged_model(model.model_id)
        assert folder.exists() != is_own
