"""A store written by version 0.1 still works: its sweep, runs, checkpoints and models.

The store has a single run in outputs/single and a sweep `old` of two seeds; model.pt2 beside it is
an exported model.
"""

import contextlib
import sqlite3
import tarfile
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from mnist_sweep.common.build import build
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.sources import embedded_mnist
from mnist_sweep.report import page
from mnist_sweep.sweep.study import create_study, get_trials, storage_url
from mnist_sweep.tools import trained_model
from mnist_sweep.tracking import queries, view
from mnist_sweep.tracking.links import ui_links
from mnist_sweep.tracking.run import store_uri
from tests.helpers.cli import ROOT, cli

ARCHIVE = ROOT / "tests" / "helpers" / "store-0.1.tar.gz"
OLD_ROOT = "/tmp/mnist_sweep_0.1"  # where the store was written
SETTINGS = ("model=tiny_vgg", "data=mnist5k", "data.train_size=300", "data.val_size=100")
SETTINGS += ("trainer.max_epochs=1", "trainer.precision=fp32", "tracking.figures=none")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the extracted archive. Its databases name this folder, not OLD_ROOT."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for name in ("mlflow.db", "optuna.db"):
        replace_text(folder / "store" / name, OLD_ROOT, str(folder))
    return folder


def replace_text(database: Path, old: str, new: str) -> None:
    """Replace a string in every text column of an SQLite database."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if kind.startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?) "
                        f"WHERE instr({column}, ?)",
                        (old, new, old),
                    )


@pytest.fixture(scope="module")
def store(extracted: Path) -> Path:
    return extracted / "store"


@pytest.fixture(scope="module")
def uri(store: Path) -> str:
    return store_uri(None, str(store))


def single_run(uri: str, store: Path) -> Run:
    query = f"tags.directory = '{store / 'outputs' / 'single'}'"
    (run,) = MlflowClient(uri).search_runs(["1"], query)
    return run


def predict(store: Path, source: str, *, trust: bool = False) -> np.ndarray:
    """Probabilities of the embedded test images, from the model that `source` names."""
    tracking = {"uri": None, "register": None}
    cfg = {"store": str(store), "source": None, "tracking": tracking, "trust": trust}
    model = trained_model.load_model(OmegaConf.create(cfg), source)
    return model.probabilities(embedded_mnist().test_images)


def test_sweep_has_a_report(store: Path, uri: str, tmp_path: Path) -> None:
    study = create_study(storage_url(None, str(store)), 60, "old", ["maximize"])
    text = page.write(tmp_path, study, uri=uri).read_text()
    assert "The only configuration (defaults) has val/accuracy" in text
    assert "over 2 seeds" in text
    assert '<a id="runs" href="http://127.0.0.1:5000/#/experiments/1/runs' in text
    assert 'id="learning_curves"' in text
    assert (tmp_path / "confusion_matrix_0.png").exists()


def test_sweep_has_a_composed_comparison(uri: str) -> None:
    url = ui_links(uri, 5000, [])["sweep old"]
    key = url.partition("viewStateShareKey=")[2]
    assert view.TAG + key in MlflowClient(uri).get_experiment("1").tags


def test_runs_of_the_sweep_are_found(uri: str) -> None:
    runs = queries.trained_runs(uri, "1", "old")
    assert [run.data.tags["trial"] for run in runs] == ["0", "1"]


@pytest.mark.parametrize("kind", ["logged model", "best.pt"])
def test_model_predicts_what_its_run_recorded(store: Path, uri: str, kind: str) -> None:
    run = single_run(uri, store)
    with queries.artifact(uri, run.info.run_id, "predictions.npz") as path:
        recorded = np.load(path)["test_probabilities"]
    best = store / "outputs" / "single" / "best.pt"
    is_program = kind == "logged model"
    probabilities = predict(store, run.info.run_id if is_program else str(best), trust=is_program)
    assert np.allclose(probabilities, recorded, atol=1e-5)


def test_logged_model_needs_trust_or_the_directory_of_its_run(store: Path, uri: str) -> None:
    """Version 0.1 logged no weights beside the program."""
    run = single_run(uri, store)
    with pytest.raises(UserError, match=r"has no saved_model\.pt") as raised:
        predict(store, run.info.run_id)
    assert str(raised.value).endswith(
        "set trust=true if you trust its source, or load the checkpoint of its run, "
        f"model={store}/outputs/single"
    )


def test_exported_model_predicts(extracted: Path, store: Path) -> None:
    probabilities = predict(store, str(extracted / "model.pt2"), trust=True)
    assert probabilities.shape == (500, 10)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_recorded_configuration_builds_its_model(uri: str, store: Path) -> None:
    cfg = queries.config_of(uri, single_run(uri, store).info.run_id)
    model = build(cfg.model, in_shape=(1, 28, 28), n_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 7740


def test_same_command_resumes_the_sweep_and_trains_nothing(store: Path) -> None:
    def attempts() -> list[tuple[int, object]]:
        study = create_study(storage_url(None, str(store)), 60, "old", ["maximize"])
        return [(trial.number, trial.datetime_complete) for trial in get_trials(study)]

    before = attempts()
    arguments = ("-m", *SETTINGS, "seed=0,1", "sweep.name=old", "sweep.report=false")
    done = cli(*arguments, store=store)
    assert done.returncode == 0, done.stderr
    assert len(before) == 2
    assert attempts() == before
