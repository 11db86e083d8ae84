"""Votes worked out by hand, and the command on recorded runs."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from omegaconf import OmegaConf
from torch import nn

from mnist_sweep.analysis import metrics, predictions
from mnist_sweep.data.sources import embedded_mnist
from mnist_sweep.models import Mixture
from mnist_sweep.tools import ensemble
from mnist_sweep.tools import trained_model as loading
from mnist_sweep.tracking import run as tracking

DATA = {
    "name": "mnist5k",
    "on_missing": "error",
    "source": {"_target_": "mnist_sweep.data.embedded_mnist"},
    **{"root": "", "val_size": 500, "split_seed": 0, "train_size": None, "classes": None},
}


def one_hot(*rows, strength=0.9):
    """[M, N, 2] probabilities of models that give `strength` to these classes."""
    return np.where(np.eye(2, dtype=bool)[np.array(rows)], strength, 1 - strength).astype(
        np.float32
    )


def test_majority_vote_counts_and_breaks_ties_by_the_mean():
    three = one_hot([0, 1], [0, 1], [1, 1])
    assert metrics.majority_vote(three).tolist() == [0, 1]
    sure, unsure = one_hot([1], strength=0.99), one_hot([0], strength=0.6)
    assert metrics.majority_vote(np.concatenate([unsure, sure])).tolist() == [1]


def test_greedy_selection_takes_complements_and_leaves_the_rest():
    labels = np.array([0, 0, 0, 0, 0, 0])
    models = one_hot([0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1])
    models[0, 4:], models[1, :2] = (0.4, 0.6), (0.4, 0.6)  # hesitant where they are wrong
    assert metrics.greedy_selection(models, labels, rounds=10).tolist() == [1, 1, 0]
    assert metrics.greedy_selection(models[[2, 0]], labels, rounds=3).tolist() == [0, 1]


def test_overlap_and_ranked_confusions():
    labels = np.array([0, 1, 0, 1])
    wrong = metrics.errors(one_hot([0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]), labels)
    assert metrics.overlap(wrong).tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    matrix = np.array([[9, 1, 0], [4, 9, 0], [0, 2, 9]])
    assert metrics.ranked_confusions(matrix) == [(1, 0, 4), (2, 1, 2), (0, 1, 1)]


def test_mixture_is_the_weighted_mean_of_probabilities():
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
    images = torch.rand(5, 1, 2, 2)
    expected = 0.75 * members[0](images).softmax(1) + 0.25 * members[1](images).softmax(1)
    assert torch.allclose(Mixture(members, [3, 1])(images).softmax(1), expected, atol=1e-6)


def test_names_of_equal_runs_are_told_apart():
    assert predictions._unique(["a", "b", "a"]) == ["a #1", "b", "a #3"]


def record(uri, experiment_id, *, hides, split=0, model=True):
    """A run whose model knows all test digits but one, which it takes for the next."""
    labels, val_labels = embedded_mnist().test_labels, np.arange(500) % 10

    def probabilities(labels):
        known = np.where(labels == hides, (labels + 1) % 10, labels)
        return np.where(np.eye(10, dtype=bool)[known], 0.8 - 0.3 * (labels == hides)[:, None], 0.02)

    def write(folder: Path) -> None:
        np.savez(
            folder / "predictions.npz",
            val_probabilities=probabilities(val_labels).astype(np.float32),
            val_labels=val_labels,
            val_indices=np.arange(500) + split,
            test_probabilities=probabilities(labels).astype(np.float32),
            test_labels=labels,
        )
        OmegaConf.save({"data": DATA}, folder / "config.yaml")

    tags = {"sweep": "s", "data.sha256": "0"}
    with tracking.start_run(uri, experiment_id, name=f"m{hides}", tags=tags, params={}) as tracker:
        tracker.log_artifacts(write)
        tracker.log_metrics({"test/loss": 0.0}, step=1)
        if model:
            net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
            tracker.log_model(net, np.zeros((2, 1, 28, 28), np.float32), "0123456789")
    return tracker.run_id


def run(store: Path, *arguments: str, tool: str = "ensemble") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"mnist_sweep.{tool}", f"store={store}", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_command_votes_and_registers_one_model(tmp_path):
    uri = tracking.store_uri(None, str(tmp_path))
    experiment_id = tracking.prepare(uri, str(tmp_path), "mnist_sweep")
    ids = [record(uri, experiment_id, hides=digit) for digit in (3, 5, 3)]

    done = run(tmp_path, "sweep=s")
    assert done.returncode == 0, done.stderr
    assert "3 as 4" in done.stdout
    client = MlflowClient(uri)
    found = client.search_runs([experiment_id], "tags.kind = 'ensemble'")[0]
    assert found.data.metrics["best_single/test/accuracy"] == pytest.approx(0.9)
    assert found.data.metrics["majority/test/accuracy"] == pytest.approx(0.9)
    assert found.data.metrics["greedy/test/accuracy"] == 1.0
    assert found.data.metrics["gain"] == pytest.approx(0.1)
    assert found.data.tags["members"] == f"{ids[0]}*1 {ids[1]}*1"
    names = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert names >= {"errors.csv", "confusions.csv", "error_overlap.png", "hardest_images.png"}

    mlflow.set_tracking_uri(uri)
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    voted = mlflow.pyfunc.load_model("models:/ensemble/1").predict(images)
    with torch.no_grad():
        each = [loading.from_mlflow(uri, i).model(torch.tensor(images)).softmax(1) for i in ids[:2]]
    assert np.exp(voted) == pytest.approx(torch.stack(each).mean(0).numpy(), abs=1e-5)
    used = run(tmp_path, "model=models:/ensemble/1", "robustness=false", tool="evaluate")
    assert "on 500 test images of mnist5k" in used.stdout, used.stderr


def test_member_without_its_model_still_votes(tmp_path):
    uri = tracking.store_uri(None, str(tmp_path))
    experiment_id = tracking.prepare(uri, str(tmp_path), "mnist_sweep")
    for digit in (3, 5):
        record(uri, experiment_id, hides=digit, model=False)
    done = run(tmp_path, "sweep=s")
    assert done.returncode == 0, done.stderr
    assert "no model of the ensemble is registered" in done.stdout
    assert run(tmp_path, "sweep=s", "tracking=none").returncode == 0
    found = MlflowClient(uri).search_runs([experiment_id], "tags.kind = 'ensemble'")
    assert [each.info.status for each in found] == ["FINISHED"]  # the second left no record


def test_rounds_below_one_are_refused(tmp_path):
    done = run(tmp_path, "sweep=s", "rounds=0")
    assert done.stderr == "error: rounds=0: expected at least 1\n"


def test_without_shared_validation_nothing_is_selected(tmp_path, caplog):
    uri = tracking.store_uri(None, str(tmp_path))
    experiment_id = tracking.prepare(uri, str(tmp_path), "mnist_sweep")
    ids = [record(uri, experiment_id, hides=3, split=split, model=False) for split in (0, 7)]
    cfg = OmegaConf.create({"sweep": None, "runs": ids})
    voters = ensemble.load_members(uri, experiment_id, cfg)
    assert ensemble.select(voters, rounds=5).tolist() == [1, 1]
    assert "data.split_seed=0" in caplog.text
    assert [each.val_accuracy for each in ensemble.vote(voters, np.ones(2, int))] == [None] * 3


def test_command_refuses_to_guess_the_members(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected either sweep=<name> or runs=[")
