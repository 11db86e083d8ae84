"""The report of real sweeps, written at their end and again by the tool."""

import csv
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers import engine
from tests.helpers.cli import recorded, tool

SMALL = ("data=mnist5k", "data.train_size=400", "data.val_size=200", "trainer.max_epochs=2")


@pytest.mark.slow
def test_report_is_written_at_the_end_of_a_sweep_and_again_by_the_tool(store: Path) -> None:
    arguments = ("model=mlp", "optimizer.lr=1e-3,1e-2", "data.batch_size=40,50,500")
    code, out = engine.run(*SMALL, *arguments, "sweep.name=r", store=store, module="mnist_sweep")
    assert code == 1  # a batch of 500 is larger than the training set
    folder = store / "outputs" / "r" / "report"
    page = folder / "report.html"
    assert f"report: {page.as_uri()}" in out
    text = page.read_text()
    for expected in (
        "has the best val/accuracy",
        "McNemar",
        "4 complete, 2 fail",
        "batch_size=500 is larger",
        "seed=0,1,2",
    ):
        assert expected in text
    assert "train it again" in out
    assert page.stat().st_size < 5e6
    with (folder / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    scores = [float(row["val/accuracy %"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {"error_overlap", "hardest_images"} <= pictures
    for chart in ("optimization_history", "slice", "parallel_coordinate", "learning_curves"):
        assert f'id="{chart}"' in text
    summary = next(r for r in recorded(store) if r.data.tags.get("kind") == "sweep")
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    recorded_files = {file.path for file in client.list_artifacts(summary.info.run_id)}
    assert {"report.html", "trials.csv", "leaderboard.csv", "error_overlap.png"} <= recorded_files

    page.unlink()
    done = tool("report", store=store)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report of sweep r: {page}\n"
    assert page.exists()
    wrong = tool("report", "sweep=q", store=store)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: sweep=q: no such sweep; the last is r\n"


@pytest.mark.slow
def test_report_of_two_objectives_without_tracking(store: Path) -> None:
    arguments = ("search=pareto", "model=mlp", "sweep.n_trials=4", "tracking=none", "sweep.name=p")
    code, out = engine.run(*SMALL, *arguments, store=store, module="mnist_sweep")
    assert code == 0, out
    folder = store / "outputs" / "p" / "report"
    text = (folder / "report.html").read_text()
    assert 'id="pareto_front"' in text
    assert "has the best val/accuracy" in text


def test_report_without_a_sweep_names_the_command_that_runs_one(fresh: Path) -> None:
    done = tool("report", store=fresh)
    assert done.returncode == 2
    assert done.stderr.endswith("no sweep ran yet; python -m mnist_sweep -m runs one\n")
    assert not fresh.exists()
