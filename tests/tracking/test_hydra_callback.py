"""The record of a Hydra application of somebody else in MLflow, made by `hydra/callbacks=mlflow`."""

import json
import pickle
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from mnist_sweep.tracking import job_record, view
from mnist_sweep.tracking.hydra_callback import MlflowCallback
from tests.helpers import cli, engine, servers

SETTINGS = "hydra.callbacks.mlflow"


class Recorded(NamedTuple):
    """A command of the application, and what it recorded, the newest run first."""

    code: int
    output: str
    client: MlflowClient
    runs: list[Run]

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.info.run_name.startswith(name))

    def files(self, run: Run, folder: str | None = None) -> set[str]:
        return {f.path for f in self.client.list_artifacts(run.info.run_id, folder)}

    def read(self, run: Run, name: str) -> str:
        return Path(self.client.download_artifacts(run.info.run_id, name)).read_text()


APP = "tests.helpers.apps.tracked"


def record(folder: Path, *arguments: str) -> Recorded:
    done = cli.run(*in_folder(folder), *arguments, module=APP)
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    return Recorded(done.returncode, done.stdout + done.stderr, client, runs_of(client))


def in_folder(folder: Path) -> list[str]:
    directories = [f"hydra.run.dir={folder}/run", f"hydra.sweep.dir={folder}/sweep"]
    return [*directories, f"{SETTINGS}.store={folder}/mlruns"]


def runs_of(client: MlflowClient) -> list[Run]:
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    return list(client.search_runs(ids)) if ids else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> Callable[[], Path]:
    """Make folders with a database that has its tables."""

    def make() -> Path:
        path = tmp_path_factory.mktemp("app")
        (path / "mlruns").mkdir()
        (path / "mlruns" / "mlflow.db").write_bytes(tables.read_bytes())
        return path

    return make


@pytest.fixture(scope="module")
def single(folder: Callable[[], Path]) -> Recorded:
    artifacts = "[metrics.csv,'**/*.png']"
    settings = (f"+{SETTINGS}.tags.team=vision", f"{SETTINGS}.artifacts={artifacts}")
    return record(folder(), "hydra/callbacks=mlflow", "x=3", "autolog=true", *settings)


@pytest.fixture(scope="module")
def basic(folder: Callable[[], Path]) -> Recorded:
    """A sweep of Hydra's basic sweeper with a job that fails."""
    return record(folder(), "-m", "hydra/callbacks=mlflow", "x=1,13")


@pytest.fixture(scope="module")
def ours(folder: Callable[[], Path]) -> Recorded:
    path = folder()
    sweep = (
        "-cn",
        "tracked_sweep",
        "-m",
        f"store={path}",
        "hydra.sweeper.name=s",
        "hydra.sweeper.n_jobs=2",
    )
    return record(path, *sweep, "x=1,2", "hydra.sweep.dir=${store}/s")


def test_job_has_a_run(single: Recorded) -> None:
    assert single.code == 0, single.output
    (run,) = single.runs
    assert run.info.status == "FINISHED"
    assert run.data.params["x"] == "3"
    assert run.data.tags["overrides"] == "x=3 autolog=true"
    assert run.data.tags["team"] == "vision"
    assert run.data.metrics["return_value"] == 6
    assert single.client.get_experiment(run.info.experiment_id).name == "tracked"


def test_what_the_task_logs_is_in_the_run_of_its_job(single: Recorded) -> None:
    (run,) = single.runs
    history = single.client.get_metric_history(run.info.run_id, "own")
    assert [(m.step, m.value) for m in history] == [(1, 3), (2, 6)]


def test_autolog_uses_the_run_of_the_job(single: Recorded) -> None:
    (run,) = single.runs
    assert run.data.params["C"] == "0.5"
    assert run.data.metrics["training_accuracy_score"] == 1
    assert run.data.metrics["return_value"] == 6, "the run was open to the end"


def test_output_files_are_chosen_by_patterns(single: Recorded) -> None:
    (run,) = single.runs
    assert single.files(run, "outputs") == {"outputs/metrics.csv", "outputs/plots"}
    assert single.files(run, "outputs/plots") == {"outputs/plots/curve.png"}


def test_application_of_a_checkout_records_its_commit(single: Recorded) -> None:
    command = ["git", "-C", str(cli.ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert single.runs[0].data.tags["git.commit"] == head
    assert "code.diff" in single.files(single.runs[0])


def test_secrets_of_the_configuration_are_masked(single: Recorded) -> None:
    (run,) = single.runs
    config = OmegaConf.create(single.read(run, "config.yaml"))
    assert config.database == {"url": "postgresql://user:***@host/x", "password": "***"}
    assert "topsecret" not in str(run.data.to_dictionary())


def test_sweep_of_another_sweeper_has_a_run_of_its_own(basic: Recorded) -> None:
    assert basic.code == 1, basic.output
    assert "the task raised" in basic.output
    sweep = basic.run("sweep ")
    assert sweep.info.status == "FAILED"
    assert sweep.data.metrics == {"trials/complete": 1, "trials/fail": 1}
    assert json.loads(sweep.data.tags["parameters"]) == ["x"]
    jobs = [run for run in basic.runs if "trial" in run.data.tags]
    assert {run.data.tags["trial"]: run.info.status for run in jobs} == {
        "0": "FINISHED",
        "1": "FAILED",
    }
    assert {run.data.tags["sweep"] for run in jobs} == {sweep.data.tags["sweep"]}
    assert "compare the runs" in basic.output


def test_job_that_fails_says_why(basic: Recorded) -> None:
    failed = next(run for run in basic.runs if run.data.tags.get("trial") == "1")
    assert failed.data.tags["error"] == "ValueError: the task raised"
    assert "return_value" not in failed.data.metrics
    assert "the task raised" in basic.read(failed, "traceback.txt")


def test_outputs_are_kept_by_default_but_not_weights(basic: Recorded) -> None:
    job = next(run for run in basic.runs if run.data.tags.get("trial") == "0")
    assert basic.files(job, "outputs") == {"outputs/metrics.csv", "outputs/tracked.log"}


def test_trials_of_two_workers_are_recorded(ours: Recorded) -> None:
    assert ours.code == 0, ours.output
    trials = {r.data.tags["trial"]: r for r in ours.runs if "trial" in r.data.tags}
    assert {number: run.info.run_name for number, run in trials.items()} == {
        "0": "s/0 x=1",
        "1": "s/1 x=2",
    }
    for run in trials.values():
        x = int(run.data.params["x"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {"own": 2 * x, "score": 2 * x}
    driver = ours.run("sweep s").data.tags["pid"]
    assert driver not in {run.data.tags["pid"] for run in trials.values()}


def test_sweep_records_its_best_trial_and_its_report(ours: Recorded) -> None:
    sweep = ours.run("sweep s")
    assert sweep.info.status == "FINISHED"
    assert sweep.data.metrics["best/score"] == 4
    assert sweep.data.tags["best.trial"] == "1"
    assert json.loads(sweep.data.tags["best.params"]) == {"x": 2}
    assert {"report.html", "leaderboard.csv", "config.yaml"} <= ours.files(sweep)


def test_sweep_prints_the_link_to_its_comparison(ours: Recorded) -> None:
    assert f"viewStateShareKey={view.key(['s'])}" in ours.output
    experiment = ours.client.get_experiment(ours.runs[0].info.experiment_id)
    assert view.TAG + view.key(["s"]) in experiment.tags


def test_server_that_is_away_costs_neither_the_job_nor_the_record(
    folder: Callable[[], Path],
) -> None:
    uri = "http://127.0.0.1:9"
    done = record(folder(), "hydra/callbacks=mlflow", f"{SETTINGS}.tracking_uri={uri}")
    assert done.code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if uri in line]
    assert f"{SETTINGS}.tracking_uri={uri}" in line
    assert "recorded in sqlite:///" in line
    assert done.runs[0].data.metrics == {"own": 2, "return_value": 2}


def test_secret_in_the_settings_is_refused_and_the_job_is_recorded(
    folder: Callable[[], Path],
) -> None:
    uri = f"{SETTINGS}.tracking_uri=postgresql://user:topsecret@127.0.0.1:9/x"
    done = record(folder(), "hydra/callbacks=mlflow", uri)
    assert done.code == 0, done.output
    assert f"{SETTINGS}.tracking_uri=postgresql://user:***@127.0.0.1:9/x" in done.output
    assert "topsecret" not in done.output
    assert done.runs[0].data.metrics == {"own": 2, "return_value": 2}


@pytest.mark.slow
def test_server_that_goes_away_costs_the_results_and_not_the_job(tmp_path: Path) -> None:
    go, port = tmp_path / "go", cli.free_port()
    with servers.mlflow_server(tmp_path, port) as uri:
        arguments = ("hydra/callbacks=mlflow", *in_folder(tmp_path), f"wait_for={go}")
        job = cli.start(
            *arguments,
            module=APP,
            env={"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"},
            stdout=PIPE,
            stderr=STDOUT,
        )
        engine.wait_for(Path(f"{go}.waiting").exists)
        (run,) = runs_of(MlflowClient(uri))
        assert run.data.metrics == {"own": 2}
        assert run.data.params["x"] == "1"
    go.touch()
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 0, output
    assert (
        f"the end of this job is not recorded in MLflow: no MLflow server answers at "
        f"MLFLOW_TRACKING_URI={uri}" in output
    )


def test_parameters_have_names_that_mlflow_takes() -> None:
    config = OmegaConf.create({"hydra": {"runtime": {"choices": {"db@a": "x", "hydra/env": "y"}}}})
    assert job_record.params(config, {"+new": 1}) == {"new": "1", "db_a": "x"}


@pytest.mark.parametrize(
    ("returned", "objectives", "expected"),
    [
        (0.5, (), {"return_value": 0.5}),
        (0.5, ("score",), {"score": 0.5}),
        (0.5, ("val/loss",), {"best/val/loss": 0.5}),
        (torch.tensor(2.0), (), {"return_value": 2}),
        (np.float32(2), (), {"return_value": 2}),
        ({"loss": 1, "name": "x", "a@b": 2}, (), {"loss": 1, "a_b": 2}),
        ((1, 2), ("loss", "size"), {"loss": 1, "size": 2}),
        ([1, 2], (), {"return_value/0": 1, "return_value/1": 2}),
        (torch.zeros(3), (), {}),
        (None, (), {}),
        (True, (), {}),
        ("done", ("score",), {}),
    ],
)
def test_returned_numbers_are_metrics(
    returned: Any, objectives: Sequence[str], expected: dict[str, float]
) -> None:
    assert job_record.metrics(returned, objectives) == expected


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MINE"])
def test_password_does_not_travel_to_workers_in_a_file(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://ann:hunter2@host/mlflow"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(variable, uri)
    written = "${oc.env:MINE}" if variable == "MINE" else None
    config = OmegaConf.create({"hydra": {"callbacks": {"mlflow": {"tracking_uri": written}}}})
    callback = MlflowCallback(
        tracking_uri=config.hydra.callbacks.mlflow.tracking_uri,
        experiment=None,
        store="mlruns",
        artifacts=[],
        max_file_mb=1,
        tags={},
    )
    pickled = pickle.dumps(callback)
    assert b"hunter2" not in pickled
    received = pickle.loads(pickled)
    received._read_secret(config)
    assert received.uri == uri
