"""The record of a run in MLflow, read by other processes."""

import csv
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mnist_sweep.common import processes
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import load_dataset
from mnist_sweep.tracking import provenance
from mnist_sweep.tracking import run as tracking
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import EPOCH_METRICS
from tests.helpers.cli import (
    ROOT,
    SMALL,
    cli,
    environment,
    free_port,
    recorded,
    run_directory,
    succeed,
)
from tests.helpers.configs import composed
from tests.helpers.servers import mlflow_server


class Finished(NamedTuple):
    run: Run
    client: MlflowClient
    artifacts: Path
    directory: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    store = tmp_path_factory.mktemp("store")
    private = {"REGISTER": "http://ann:secret@nowhere/model"}
    arguments = (*SMALL, "trainer.max_epochs=3", "seed=3", "tracking.register=${oc.env:REGISTER}")
    directory = succeed(*arguments, store=store, **private)
    (run,) = recorded(store)
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    return Finished(run, MlflowClient(f"sqlite:///{store}/mlflow.db"), artifacts, directory)


def test_run_records_the_resolved_configuration(finished: Finished) -> None:
    params = finished.run.data.params
    assert params["seed"] == "3"
    choices = [params[group] for group in ("model", "optimizer", "scheduler", "data")]
    assert choices == ["simple", "adam", "none", "mnist5k"]
    assert params["data.split_seed"] == "3"  # resolved
    assert params["model.stages"] == "[[32], [64]]"
    assert params["trainer.early_stopping.patience"] == "5"
    saved = (finished.artifacts / "config.yaml").read_text()
    assert "split_seed: 3" in saved


def test_record_contains_no_password(finished: Finished) -> None:
    masked = "http://***@nowhere/model"
    assert finished.run.data.params["tracking.register"] == masked
    assert "tracking.register=${oc.env:REGISTER}" in finished.run.data.tags["overrides"]
    assert masked in (finished.artifacts / "config.yaml").read_text()


def test_run_records_every_metric_of_every_epoch(finished: Finished) -> None:
    run_id = finished.run.info.run_id
    for name in (*EPOCH_METRICS, "lr", "epoch_s", "images_per_s"):
        history = finished.client.get_metric_history(run_id, name)
        assert [metric.step for metric in history] == [1, 2, 3], name
    metrics = finished.run.data.metrics
    assert metrics["n_parameters"] == 421_642
    best = max(m.value for m in finished.client.get_metric_history(run_id, "val/accuracy"))
    assert metrics["best/val/accuracy"] == best
    assert {"test/loss", "test/accuracy", "best_epoch"} <= metrics.keys()


def test_run_records_its_code_packages_and_device(finished: Finished) -> None:
    run = finished.run
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"simple \d{4}-\d\d-\d\d \d\d:\d\d", run.info.run_name)
    commit = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip()
    assert run.data.tags["git.commit"] in (head, "none")
    assert (finished.artifacts / "code.diff").is_file()
    assert run.data.tags.keys() >= {"host", "pid", "device", "version.torch", "version.mlflow"}
    assert Path(run.data.tags["directory"]) == finished.directory


def test_run_records_the_data_that_it_used(finished: Finished) -> None:
    dataset = finished.run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "mnist5k"
    sha256 = finished.run.data.tags["data.sha256"]
    assert len(sha256) == 64
    assert sha256.startswith(dataset.digest)
    assert '"train": 600' in dataset.profile


def test_predictions_agree_with_the_metrics_and_the_matrix(finished: Finished) -> None:
    predictions = np.load(finished.artifacts / "predictions.npz")
    probabilities, labels = predictions["test_probabilities"], predictions["test_labels"]
    assert probabilities.sum(1) == pytest.approx(np.ones(len(labels)), abs=1e-5)
    metrics = finished.run.data.metrics
    correct = probabilities.argmax(1) == labels
    assert correct.mean() == pytest.approx(metrics["test/accuracy"], abs=1e-6)
    val_correct = predictions["val_probabilities"].argmax(1) == predictions["val_labels"]
    assert val_correct.mean() == pytest.approx(metrics["best/val/accuracy"], abs=1e-6)
    with (finished.artifacts / "confusion_matrix.csv").open() as file:
        header, *rows = csv.reader(file)
    counts = np.array([row[1:] for row in rows], dtype=int)
    assert header[1:] == [str(i) for i in range(10)]
    assert np.trace(counts) == correct.sum()
    assert counts.sum(1).tolist() == np.bincount(labels).tolist()


def test_confusion_matrix_is_a_picture_beside_those_of_other_runs(finished: Finished) -> None:
    assert finished.run.data.tags["mlflow.loggedImages"] == "True"
    names = [path.name for path in (finished.artifacts / "images").iterdir()]
    assert {name.split("+timestamp")[0] for name in names} == {"confusion_matrix+step+0"}
    assert sorted(Path(name).suffix for name in names) == [".png", ".webp"]


FIGURES = ("confusion_matrix", "learning_curves", "mistakes", "prediction", "predictions")
FIGURES += ("per_class", "calibration", "first_layer")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_images(finished: Finished, name: str) -> None:
    content = (finished.artifacts / f"{name}.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[i : i + 4]) for i in (16, 20))
    assert width > 500
    assert height > 300


WITHOUT_OUR_PACKAGE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mnist_sweep":
            raise ImportError("mnist_sweep is not installed here")

sys.meta_path.insert(0, Blocker())
import mlflow
import numpy as np

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"runs:/{sys.argv[2]}/model")
images = np.load(sys.argv[3])
np.save(sys.argv[4], np.concatenate([model.predict(part) for part in (images[:1], images[1:])]))
assert "mnist_sweep" not in sys.modules
"""


def test_model_predicts_raw_pixels_without_our_package(finished: Finished, tmp_path: Path) -> None:
    test = load_dataset(composed(*SMALL, "seed=3").data).test
    np.save(tmp_path / "images.npy", test.images[:7].numpy().astype(np.float32) / 255)
    uri = finished.client.tracking_uri
    paths = [str(tmp_path / name) for name in ("images.npy", "logits.npy")]
    arguments = [sys.executable, "-c", WITHOUT_OUR_PACKAGE, uri, finished.run.info.run_id, *paths]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    logits = np.load(tmp_path / "logits.npy")
    odds = np.exp(logits - logits.max(1, keepdims=True))
    expected = np.load(finished.artifacts / "predictions.npz")["test_probabilities"][:7]
    assert odds / odds.sum(1, keepdims=True) == pytest.approx(expected, abs=1e-4)


def test_same_seed_gives_the_same_run(finished: Finished, store: Path) -> None:
    again = succeed(*SMALL, "trainer.max_epochs=3", "seed=3", "tracking=none", store=store)
    one, two = (checkpoint.load(path / "best.pt")["model"] for path in (finished.directory, again))
    assert all(bool((one[name] == two[name]).all()) for name in one)


def test_tracking_none_writes_only_checkpoints_and_the_log(fresh: Path) -> None:
    directory = succeed(*SMALL, "tracking=none", store=fresh)
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    hydra = {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
    assert files == {"best.pt", "last.pt", "run.log", *hydra}
    everything = {path for path in fresh.rglob("*") if path.is_file()}
    assert everything == {directory / name for name in files}


def test_diverged_run_ends_failed_with_its_error(store: Path) -> None:
    done = cli(*SMALL, "optimizer=sgd", "optimizer.lr=1e10", store=store)
    assert done.returncode == 2
    assert "at step" in done.stderr
    (run,) = recorded(store)
    assert run.info.status == "FAILED"
    assert "at step" in run.data.tags["error"]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "DivergedError" in (artifacts / "traceback.txt").read_text()


def test_server_that_never_answers_is_an_error_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match=address):
            tracking.check_store(address)
    assert time.monotonic() - started < 10  # a start may take 15 s


@pytest.mark.slow
def test_run_is_recorded_on_a_server(fresh: Path, tmp_path: Path) -> None:
    """With `tracking.uri` of a server, MLflow writes nothing under `store`."""
    with mlflow_server(tmp_path, free_port()) as uri:
        directory = run_directory(cli(*SMALL, f"tracking.uri={uri}", store=fresh).stdout)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("mnist_sweep")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert run.info.status == "FINISHED"
    assert run.data.tags["directory"] == str(directory)
    assert {"predictions.npz", "confusion_matrix.png"} <= names
    assert not (fresh / "mlflow.db").exists()


def start_run(store: Path, tags: Mapping[str, str]) -> MlflowClient:
    uri = tracking.store_uri(None, str(store))
    experiment_id = tracking.prepare(uri, str(store), "mnist_sweep")
    client = MlflowClient(uri)
    client.create_run(experiment_id, tags=dict(tags))
    return client


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "RUNNING"),  # this process
        ({"pid": "999999999"}, "KILLED"),
        ({"process_started": "1.00"}, "KILLED"),  # another process has the pid now
        ({"boot_id": "an earlier one"}, "KILLED"),
        ({"host": "another machine"}, "RUNNING"),  # its processes are unknown here
    ],
)
def test_runs_of_dead_processes_are_closed(
    changes: dict[str, str], status: str, store: Path
) -> None:
    start_run(store, {**processes.process_identity(), **changes})
    tracking.prepare(tracking.store_uri(None, str(store)), str(store), "mnist_sweep")
    assert recorded(store)[0].info.status == status


def test_deleted_experiment_is_an_error(store: Path) -> None:
    uri = tracking.store_uri(None, str(store))
    experiment_id = tracking.prepare(uri, str(store), "mnist_sweep")
    assert tracking.prepare(uri, str(store), "mnist_sweep") == experiment_id
    MlflowClient(uri).delete_experiment(experiment_id)
    with pytest.raises(UserError, match="deleted experiment"):
        tracking.prepare(uri, str(store), "mnist_sweep")


def test_two_processes_prepare_a_new_store_at_once(fresh: Path) -> None:
    code = (
        "import sys; from mnist_sweep.tracking import run as t;"
        "print(t.prepare(t.store_uri(None, sys.argv[1]), sys.argv[1], 'mnist_sweep'))"
    )
    argv = [sys.executable, "-c", code, str(fresh)]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(ids) == 1


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a package whose provenance module is the one under test."""
    module = tmp_path / "package" / "tracking" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    user = "-c", "user.name=a", "-c", "user.email=a@b"
    subprocess.run(["git", "-C", str(folder), *user, *arguments], check=True)


def test_git_state_includes_new_files_and_any_encoding(checkout: Path) -> None:
    assert provenance.git_state.__wrapped__()[1] == ""
    (checkout / "package" / "tracking" / "provenance.py").write_bytes("# grün".encode("latin-1"))
    (checkout / "package" / "new.py").write_text("")
    _, diff = provenance.git_state.__wrapped__()
    assert "gr\N{REPLACEMENT CHARACTER}n" in diff
    assert diff.endswith("new file: package/new.py\n")


def test_git_state_of_a_package_that_git_does_not_track_is_none(checkout: Path) -> None:
    """As in an environment inside the checkout of another project."""
    git(checkout, "rm", "-q", "--cached", "package/tracking/provenance.py")
    assert provenance.git_state.__wrapped__() == ("none", "")
