"""The tool `ensemble` on runs whose predictions are known."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from omegaconf import OmegaConf

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.data.images import DIGITS
from mnist_sweep.data.sources import embedded_mnist
from mnist_sweep.tools import ensemble
from mnist_sweep.tools.trained_model import load_from_mlflow
from mnist_sweep.tracking.run import prepare, start_run, store_uri
from mnist_sweep.training.saved_model import SavedModel
from tests.helpers.cli import tool

DATA = {
    "name": "mnist5k",
    "on_missing": "error",
    "source": {"_target_": "mnist_sweep.data.embedded_mnist"},
    **{"root": "", "val_size": 500, "split_seed": 0, "train_size": None, "classes": None},
}


@pytest.fixture
def opened(store: Path) -> tuple[str, str]:
    """Return the URI and the experiment of an empty MLflow store."""
    uri = store_uri(None, str(store))
    return uri, prepare(uri, str(store), "mnist_sweep")


def record(
    opened: tuple[str, str], *, wrong_on: int, first_val_index: int = 0, model: bool = True
) -> str:
    """Record a run and return its id. Its model takes one test digit for the next digit."""
    labels, val_labels = embedded_mnist().test_labels, np.arange(500) % 10

    def probabilities(labels):
        predicted = np.where(labels == wrong_on, (labels + 1) % 10, labels)
        confidence = 0.8 - 0.3 * (labels == wrong_on)[:, None]
        return np.where(np.eye(10, dtype=bool)[predicted], confidence, 0.02).astype(np.float32)

    def write(folder: Path) -> None:
        np.savez(
            folder / "predictions.npz",
            val_probabilities=probabilities(val_labels),
            val_labels=val_labels,
            val_indices=np.arange(500) + first_val_index,
            test_probabilities=probabilities(labels),
            test_labels=labels,
        )
        OmegaConf.save({"data": DATA}, folder / "config.yaml")

    tags = {"sweep": "s", "data.sha256": embedded_mnist().digest}
    with start_run(*opened, name=f"m{wrong_on}", tags=tags, params={}) as tracker:
        tracker.log_artifacts(write)
        tracker.log_metrics({"test/loss": 0.0}, step=1)
        if model:
            node = {"_target_": "mnist_sweep.models.CNN"}  # without a stage or a hidden layer
            net = build(OmegaConf.create(node), in_shape=(1, 28, 28), n_classes=10)
            state = models.Classifier(net, [0.0], [1.0]).state_dict()
            saved = SavedModel([node], [state], [1.0], (1, 28, 28), DIGITS)
            example = np.zeros((2, 1, 28, 28), np.float32)
            tracker.log_model(saved.build(), example, DIGITS, saved.save_in)
    return tracker.run_id


def test_ensemble_is_measured_and_registered_as_one_model(
    store: Path, opened: tuple[str, str]
) -> None:
    uri, experiment_id = opened
    ids = [record(opened, wrong_on=digit) for digit in (3, 5, 3)]
    done = tool("ensemble", "sweep=s", store=store)
    assert done.returncode == 0, done.stderr
    assert "3 as 4" in done.stdout
    client = MlflowClient(uri)
    run = client.search_runs([experiment_id], "tags.kind = 'ensemble'")[0]
    assert run.data.metrics["best_single/test/accuracy"] == pytest.approx(0.9)
    assert run.data.metrics["majority/test/accuracy"] == pytest.approx(0.9)
    assert run.data.metrics["greedy/test/accuracy"] == 1.0
    assert run.data.metrics["gain"] == pytest.approx(0.1)
    assert run.data.tags["members"] == f"{ids[0]}*1 {ids[1]}*1"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names >= {"errors.csv", "confusions.csv", "error_overlap.png", "hardest_images.png"}
    (directory,) = (store / "outputs").glob("*/*")
    assert f"tables and figures: {directory}" in done.stdout
    assert {path.name for path in directory.iterdir()} >= {"ensemble.txt", "errors.csv"}

    mlflow.set_tracking_uri(uri)
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    mixture = mlflow.pyfunc.load_model("models:/ensemble/1").predict(images)
    members = [load_from_mlflow(uri, run_id).model for run_id in ids[:2]]
    with torch.no_grad():
        each = torch.stack([model(torch.tensor(images)).softmax(1) for model in members])
    assert np.exp(mixture) == pytest.approx(each.mean(0).numpy(), abs=1e-5)
    used = tool("evaluate", "model=models:/ensemble/1", "robustness=false", store=store)
    assert "on 500 test images of mnist5k" in used.stdout, used.stderr


def test_ensemble_of_deleted_models_is_measured_but_not_registered(
    store: Path, opened: tuple[str, str]
) -> None:
    ids = [record(opened, wrong_on=digit, model=False) for digit in (3, 5)]
    done = tool("ensemble", f"runs={','.join(ids)}", store=store)
    assert done.returncode == 0, done.stderr
    assert "the ensemble is not registered as a model" in done.stdout
    assert tool("ensemble", "sweep=s", "tracking=none", store=store).returncode == 0
    uri, experiment_id = opened
    runs = MlflowClient(uri).search_runs([experiment_id], "tags.kind = 'ensemble'")
    assert [run.info.status for run in runs] == ["FINISHED"]  # the second is not recorded


def test_without_shared_validation_images_all_weights_are_one(
    opened: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    ids = [record(opened, wrong_on=3, first_val_index=i, model=False) for i in (0, 7)]
    cfg = OmegaConf.create({"sweep": None, "runs": ids})
    predictions = ensemble.load(*opened, cfg)
    assert ensemble.select(predictions, rounds=5).tolist() == [1, 1]
    assert "data.split_seed=0" in caplog.text
    votes = ensemble.vote(predictions, np.ones(2, int))
    assert [each.val_accuracy for each in votes] == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected either sweep=<name> or runs=<run id>,<run id>"),
        (["sweep=s", "rounds=0"], "rounds=0: expected a number above 0"),
        (['sweep=it\'s "x"'], 'sweep=it\'s "x": expected a name without both kinds of quotes'),
        (["sweep=s", "model_name="], "model_name=: expected a text that is not empty"),
        (["sweep=s", "model_name=a/b"], "model_name=a/b: expected the name of a registered model"),
        (["runs=a'b,c\"d"], "runs=a'b,c\"d: "),
        (["sweep=it's, not"], "sweep=it's, not names 0 finished runs"),
        (["runs=x"], "runs=x: "),
    ],
)
def test_mistake_is_one_line_on_stderr(arguments: list[str], expected: str, store: Path) -> None:
    done = tool("ensemble", *arguments, store=store)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
