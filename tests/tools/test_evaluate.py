"""The tool `evaluate` on a model trained here."""

import re

import pytest
import torch
from mlflow import MlflowClient

from mnist_sweep.tools.evaluate import CHANGES
from tests.helpers.cli import recorded, tool
from tests.helpers.trained import run_id, store


def test_evaluate_prints_and_records_the_metrics() -> None:
    done = tool("evaluate", f"model={run_id()}", "data.batch_size=50", store=store())
    assert done.returncode == 0, done.stderr
    assert "on 500 test images of mnist5k" in done.stdout
    assert re.search(r"^inverted +\d+\.\d\d$", done.stdout, re.MULTILINE), "it has no strength"
    run = recorded(store())[0]
    assert done.stdout.endswith(f"recorded as run {run.info.run_id}\n")
    trained = next(r for r in recorded(store()) if r.info.run_id == run_id())
    assert run.data.tags["kind"] == "evaluation"
    assert run.data.tags["of.run_id"] == run_id()
    accuracy = run.data.metrics["test/accuracy"]
    assert accuracy == pytest.approx(trained.data.metrics["test/accuracy"], abs=1e-6)
    client = MlflowClient(f"sqlite:///{store()}/mlflow.db")
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"robustness.png", "robustness.csv", "confusion_matrix.png"} <= files


def test_evaluate_without_tracking_records_nothing() -> None:
    before = len(recorded(store()))
    done = tool("evaluate", "robustness=false", "tracking=none", store=store())
    assert done.returncode == 0, done.stderr
    assert "recorded" not in done.stdout
    assert len(recorded(store())) == before


@pytest.mark.parametrize("name", ["shifted", "rotated"])
def test_moved_images_keep_their_background(name: str) -> None:
    images = torch.ones(2, 3, 9, 9)
    _, change, strengths = CHANGES[name]
    assert torch.allclose(change(images, strengths[-1], [1.0, 1.0, 1.0]), images)
    assert change(images, strengths[-1], None).amin() == 0
