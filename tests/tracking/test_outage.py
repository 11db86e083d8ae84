"""Runs whose MLflow store is away, suspended, killed or locked."""

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.processes import process_identity
from mnist_sweep.tracking import buffer
from mnist_sweep.tracking import run as tracking
from mnist_sweep.tracking.recorder import MlflowTracker, sweep_run
from tests.helpers import engine
from tests.helpers.cli import ROOT, SMALL, environment, free_port, recorded
from tests.helpers.configs import composed
from tests.helpers.servers import mlflow_server, suspended

PICTURE = np.zeros((8, 8, 3), np.uint8)
SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}


class Server(NamedTuple):
    uri: str
    port: int
    client: MlflowClient


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("server"), port) as uri:
        yield Server(uri, port, MlflowClient(uri))


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mnist_sweep.tracking.queries.PROBE_TIMEOUT_S", 1)


def tracker(tmp_path: Path, name: str, uri: str | None = None, *overrides: str) -> MlflowTracker:
    cfg = composed(f"store={tmp_path / 'store'}", *overrides)
    cfg.tracking.uri = uri
    return MlflowTracker(cfg, run_name=name, tags={}, params={"a": "b"}, directory=tmp_path / name)


def record_all(run: MlflowTracker) -> None:
    """Record one of everything but metrics."""
    run.set_tags({"colour": "blue"})
    run.log_dataset("toy", "f" * 64, "nowhere", {"train": 3})
    run.log_artifacts(lambda folder: (folder / "notes.txt").write_text("hello") and None)
    run.log_image("matrix", PICTURE)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    run.log_model(model, np.zeros((2, 1, 2, 2), np.float32), ("a", "b"), lambda folder: None)


def find(client: MlflowClient, name: str) -> Run:
    """Return the run with this name. There is one."""
    (run,) = client.search_runs(["1"], f"attributes.run_name = '{name}'")
    return run


def steps(client: MlflowClient, run: Run, metric: str = "loss") -> list[int]:
    return [m.step for m in client.get_metric_history(run.info.run_id, metric)]


def check_all(client: MlflowClient, run: Run) -> None:
    """Check that a run has what `record_all` records, once."""
    assert (run.data.params, run.data.tags["colour"]) == ({"a": "b"}, "blue")
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "toy"
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {"code.diff", "config.yaml", "images", "notes.txt"}
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2, "a picture and its thumbnail"
    (output,) = run.outputs.model_outputs
    assert client.get_logged_model(output.model_id).status == "READY"


def unsent(tmp_path: Path) -> list[str]:
    """Return the records that wait in the store."""
    return [each.record.key for each in buffer.unsent(str(tmp_path / "store"))]


def test_server_away_at_the_start_of_a_run_and_back_before_its_end(
    server: Server, tmp_path: Path
) -> None:
    run = tracker(tmp_path, "late", server.uri)
    with suspended(server.port) as wake, run.run({}):
        run.log_metrics({"loss": 2.0}, step=1)
        record_all(run)
        assert run.run_id is None
        wake()
        run.log_metrics({"loss": 1.0}, step=2)
    found = find(server.client, "late")
    assert (found.info.status, steps(server.client, found)) == ("FINISHED", [1, 2])
    check_all(server.client, found)
    assert unsent(tmp_path) == []
    assert list((tmp_path / "late").iterdir()) == []


def test_server_away_until_after_the_end_gets_the_record_from_the_next_run(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tracker(tmp_path, "cut", server.uri)
    with ExitStack() as outage:
        with run.run({}):
            run.log_metrics({"loss": 2.0}, step=1)
            assert run.flush()
            outage.enter_context(suspended(server.port))
            run.log_metrics({"loss": 1.0}, step=2)
            record_all(run)
        assert f"waits in {tmp_path / 'cut' / tracking.UNSENT}" in caplog.text
        assert len(unsent(tmp_path)) == 1
    with tracker(tmp_path, "next", server.uri).run({}):
        pass
    found = find(server.client, "cut")
    assert (found.info.status, steps(server.client, found)) == ("FINISHED", [1, 2])
    assert found.info.end_time < find(server.client, "next").info.start_time, "when it ended"
    check_all(server.client, found)
    assert unsent(tmp_path) == []


def test_on_outage_wait_goes_on_when_the_server_is_back(server: Server, tmp_path: Path) -> None:
    run = tracker(tmp_path, "waits", server.uri, "tracking.on_outage=wait")
    with suspended(server.port) as wake:
        woken = threading.Event()
        timer = threading.Timer(2, lambda: (woken.set(), wake()))
        timer.start()
        with run.run({}):
            assert woken.is_set()
            assert run.run_id is not None
    assert find(server.client, "waits").info.status == "FINISHED"


def test_on_outage_fail_ends_the_run_and_the_next_one_records_that(
    server: Server, tmp_path: Path
) -> None:
    run = tracker(tmp_path, "fails", server.uri, "tracking.on_outage=fail")
    never = tracker(tmp_path, "never", server.uri, "tracking.on_outage=fail")
    with ExitStack() as outage:

        def train() -> None:
            with run.run({}):
                assert run.flush()
                outage.enter_context(suspended(server.port))
                run.log_metrics({"loss": 2.0}, step=1)
                run.flush()

        with pytest.raises(MlflowException, match="log-batch failed"):
            train()
        with pytest.raises(UserError, match="no MLflow server answers"), never.run({}):
            pass
    with tracker(tmp_path, "after", server.uri).run({}):
        pass
    found = find(server.client, "fails")
    assert (found.info.status, steps(server.client, found)) == ("FAILED", [1])
    assert "log-batch failed" in found.data.tags["error"]
    assert not server.client.search_runs(["1"], "attributes.run_name = 'never'")
    assert unsent(tmp_path) == []


@pytest.mark.parametrize(
    ("on_outage", "error"),
    [(None, "no MLflow server answers"), ("fail", "no MLflow server answers"), ("buffer", "")],
)
def test_command_whose_server_is_away_from_the_start(on_outage: str | None, error: str) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    if error:
        with pytest.raises(UserError, match=error):
            tracking.check_at_start(uri, on_outage)
    else:
        tracking.check_at_start(uri, on_outage)


def test_refusal_of_the_store_is_no_outage(store: Path, tmp_path: Path) -> None:
    run = tracker(tmp_path, "deleted")

    def train() -> None:
        with run.run({}):
            assert run.flush()
            MlflowClient(run.uri).delete_run(run.run_id)
            run.log_metrics({"loss": 2.0}, step=1)
            run.flush()

    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        train()


@contextmanager
def locked(run: MlflowTracker) -> Iterator[None]:
    """Lock the database of the store, so that nothing is sent until the block ends."""
    assert run.flush()
    with closing(sqlite3.connect(run.uri.removeprefix("sqlite:///"))) as database:
        database.execute("BEGIN IMMEDIATE")
        yield


def test_locked_store_stops_nobody_and_a_repeated_call_records_nothing_twice(
    store: Path, tmp_path: Path
) -> None:
    run = tracker(tmp_path, "twice")
    with run.run({}):
        with locked(run):
            run.log_metrics({"loss": 2.0}, step=1)
            record_all(run)
            copy = shutil.copytree(run.buffer.folder, tmp_path / "copy")
        assert run.flush()
        for entry in sorted(copy.glob("*.json")):
            assert run.sender.run_in_store is not None
            buffer.send(run.sender.run_in_store, entry)
    (found,) = recorded(store)
    client = MlflowClient(run.uri)
    assert (found.info.status, steps(client, found)) == ("FINISHED", [1])
    check_all(client, found)


DIES = """
import os, sys
from pathlib import Path
from tests.tracking.test_outage import locked, tracker

run = tracker(Path(sys.argv[1]), "killed")
with run.run({}), locked(run):
    run.log_metrics({"loss": 2.0}, step=1)
    os._exit(9)
"""


def test_record_of_a_killed_process_is_sent_by_the_next_run(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIES, str(tmp_path)]
    assert subprocess.run(command, env=environment(), cwd=ROOT, check=False).returncode == 9
    assert len(unsent(tmp_path)) == 1
    with tracker(tmp_path, "next").run({}):
        pass
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found = find(client, "killed")
    assert (found.info.status, steps(client, found)) == ("KILLED", [1])
    assert unsent(tmp_path) == []


def test_record_that_is_still_being_sent_is_not_given_to_others(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, log_folder = threading.Event(), tracking.MlflowRun.log_folder

    def log_slowly(run: tracking.MlflowRun, folder: Path) -> None:
        go.wait()
        log_folder(run, folder)

    monkeypatch.setattr(tracking.MlflowRun, "log_folder", log_slowly)
    monkeypatch.setattr("mnist_sweep.tracking.recorder.INTERRUPTED_S", 0)
    run = tracker(tmp_path, "slow")
    try:
        with pytest.raises(KeyboardInterrupt), run.run({}):
            raise KeyboardInterrupt
        assert len(unsent(tmp_path)) == 1
        assert list(buffer.left_over(run.uri, str(store))) == []
    finally:
        go.set()
        run.sender.join()
    assert find(MlflowClient(run.uri), "slow").info.status == "KILLED"
    assert unsent(tmp_path) == []


def left_over(store: Path) -> tuple[buffer.Buffer, tracking.MlflowRun]:
    """Return the record of a run whose process is dead, and the run."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags, folder = process_identity(process.pid), str(store / "run" / tracking.UNSENT / "k")
    process.kill()
    process.communicate()
    uri, identity = tracking.store_uri(None, str(store)), {tracking.RECORD: "k"}
    record = buffer.Record("k", uri, "e", "n", {**tags, **identity}, identity, 0, folder)
    return buffer.Buffer.create(record, str(store)), record.open(uri, str(store), may_exist=False)


def test_run_that_ended_before_its_process_was_killed_keeps_its_status(store: Path) -> None:
    record, run = left_over(store)
    record.add("end", status="FINISHED")
    buffer.send_left_over(record.record.uri, str(store))
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert buffer.unsent(str(store)) == []


def test_run_that_resumes_waits_for_the_process_that_sends_its_record(store: Path) -> None:
    record, _ = left_over(store)
    lock = FileLock(store / tracking.UNSENT / ".lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    buffer.send_left_over(record.record.uri, str(store), record.record.identity)
    timer.join()
    assert buffer.unsent(str(store)) == []


def test_sweep_that_resumes_keeps_its_run_open(server: Server, tmp_path: Path) -> None:
    """What the earlier command left over is sent before the run is opened again."""
    cfg = composed(f"store={tmp_path / 'store'}", f"tracking.uri={server.uri}")
    with ExitStack() as outage, sweep_run(cfg, "s", tags={}, directory=tmp_path) as first:
        assert first.flush()
        outage.enter_context(suspended(server.port))
    assert len(unsent(tmp_path)) == 1
    with sweep_run(cfg, "s", tags={}, directory=tmp_path) as second:
        assert second.flush()
        assert unsent(tmp_path) == [second.buffer.record.key]
        assert find(server.client, "sweep s").info.status == "RUNNING"
    assert find(server.client, "sweep s").info.status == "FINISHED"


QUICK = (*SMALL, "trainer.max_epochs=2", "tracking.figures=none", "sweep.report=false")


@pytest.mark.slow
def test_sweep_goes_on_without_its_server_and_the_same_command_sends_its_record(
    tmp_path: Path,
) -> None:
    port, store = free_port(), tmp_path / "store"
    arguments = (*QUICK, "optimizer.lr=1e-3,2e-3", "sweep.name=s", "tracking.log_model=false")
    with mlflow_server(tmp_path, port) as uri:
        arguments += (f"tracking.uri={uri}",)
        sweep = engine.start(*arguments, store=store, module="mnist_sweep", **SHORT)
        log = store / "outputs" / "s" / "0" / "run.log"
        engine.wait_for(lambda: log.exists() and "epoch 1/2" in log.read_text())
    try:
        assert sweep.wait(100) == 0
    finally:
        engine.end(sweep)
    output = engine.output(store)
    assert "MLflow is away: 3 records wait on disk. The same command with sweep.name=s" in output
    assert "Traceback" not in output
    with mlflow_server(tmp_path, port):
        code, output = engine.run(*arguments, store=store, module="mnist_sweep")
        assert code == 0, output
        client = MlflowClient(uri)
        runs = client.search_runs(["1"])
        assert sorted(run.data.tags.get("trial", "") for run in runs) == ["", "0", "1"]
        assert {run.info.status for run in runs} == {"FINISHED"}
        trials = [run for run in runs if "trial" in run.data.tags]
        assert [steps(client, run, "val/loss") for run in trials] == [[1, 2], [1, 2]]
    assert "marked run" not in output
    assert unsent(tmp_path) == []


def test_run_of_a_lost_host_is_closed_by_the_sweep_that_reaps_its_trial(store: Path) -> None:
    arguments = (*QUICK, "optimizer.lr=1e-3,2e-3", "sweep.name=s", "tracking.log_model=false")
    code, output = engine.run(*arguments, store=store, module="mnist_sweep")
    assert code == 0, output
    lose_host(store)
    code, output = engine.run(*arguments, store=store, module="mnist_sweep")
    assert code == 0, output
    states = [t.state.name for t in engine.trials(store, "s")]
    assert states == ["COMPLETE", "FAIL", "COMPLETE"]
    runs = {r.data.tags["trial"]: r.info.status for r in recorded(store) if "trial" in r.data.tags}
    assert runs == {"0": "FINISHED", "1": "KILLED", "2": "FINISHED"}


def lose_host(store: Path) -> None:
    """Make trial 1 and its run look as if another host had run them and was lost an hour ago."""
    with closing(sqlite3.connect(store / "optuna.db")) as study, study:
        (key,) = study.execute("SELECT trial_id FROM trials WHERE number = 1").fetchone()
        study.execute("UPDATE trials SET state = 'RUNNING' WHERE trial_id = ?", (key,))
        study.execute("DELETE FROM trial_values WHERE trial_id = ?", (key,))
        study.execute(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour') WHERE trial_id = ?",
            (key,),
        )
        study.execute(
            "UPDATE trial_user_attributes SET value_json = replace(value_json, ?, 'lost') "
            "WHERE trial_id = ? AND key = 'worker'",
            (socket.gethostname(), key),
        )
    with closing(sqlite3.connect(store / "mlflow.db")) as runs, runs:
        of_trial = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'trial' AND value = '1')"
        runs.execute(f"UPDATE runs SET status = 'RUNNING', end_time = NULL WHERE {of_trial}")
        runs.execute(f"UPDATE tags SET value = 'lost' WHERE key = 'host' AND {of_trial}")
