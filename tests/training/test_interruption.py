"""Training runs that a signal interrupts, in real processes, and that resume."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mnist_sweep.training import checkpoint
from tests.helpers import cli as commands
from tests.helpers.cli import cli, recorded, run_directory, succeed

# Everything that draws random numbers or has a state. An epoch takes more than a second.
LONG = [
    *("data=mnist5k", "model=deeper", "model.dropout=0.3", "model.batch_norm=true"),
    *("data.augment=affine", "scheduler=onecycle", "data.train_size=1200", "data.batch_size=12"),
    *("trainer.max_epochs=3", "device=cpu", "tracking.log_model=false"),
]


def start(*arguments: str, store: Path) -> subprocess.Popen[str]:
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return commands.start(f"store={store}", *arguments, **output)


def kill_within_epoch_2(process: subprocess.Popen[str], signum: int) -> str:
    """Send the signal shortly after the log line of the first epoch. Return the whole output."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 1/"):
            time.sleep(0.6)
            process.send_signal(signum)
            break
    rest, _ = process.communicate(timeout=60)
    return "".join(lines) + rest


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Check that two checkpoints are bit-identical, except for measured times."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "epoch_s", "images_per_s"}:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


def assert_same_checkpoints(whole: Path, resumed: Path) -> None:
    for name in (checkpoint.BEST, checkpoint.LAST):
        assert_same(checkpoint.load(whole / name), checkpoint.load(resumed / name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run."""
    return succeed(*LONG, store=tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_run_resumed_after_sigterm_ends_bit_identical(store: Path, whole: Path) -> None:
    process = start(*LONG, store=store)
    output = kill_within_epoch_2(process, signal.SIGTERM)
    assert process.returncode == 143, output
    (killed,) = recorded(store)
    assert killed.info.status == "KILLED"
    stopped = run_directory(output)
    saved = checkpoint.load(stopped / checkpoint.LAST)
    assert saved["state"]["epoch"] == 1
    assert 0 < saved["partial"]["step"] < 100

    resumed = succeed(*LONG, f"trainer.resume={stopped}", store=store)
    assert_same_checkpoints(whole, resumed)
    done = recorded(store)[0]
    assert done.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{store}/mlflow.db").get_metric_history(
        done.info.run_id, "val/loss"
    )
    assert [metric.step for metric in history] == [1, 2, 3]


@pytest.mark.slow
def test_run_resumed_after_sigkill_ends_bit_identical(store: Path, whole: Path) -> None:
    process = start(*LONG, store=store)
    stopped = run_directory(kill_within_epoch_2(process, signal.SIGKILL))
    (dead,) = recorded(store)
    assert dead.info.status == "RUNNING"  # no process was left to close it
    assert "val/loss" in dead.data.metrics  # recorded after each epoch
    saved = checkpoint.load(stopped / checkpoint.LAST)
    assert saved["partial"] is None
    saved["state"]["seconds"] += 1000
    checkpoint.save(stopped / checkpoint.LAST, saved)

    done = cli(*LONG, "tracking.run_name=b", f"trainer.resume={stopped}", store=store)
    assert done.returncode == 0, done.stderr
    assert "KILLED: its process is dead" in done.stdout
    assert "WARNING" not in done.stdout  # the same configuration
    assert_same_checkpoints(whole, run_directory(done.stdout))
    finished, killed = recorded(store)
    assert (finished.info.status, killed.info.status) == ("FINISHED", "KILLED")
    metrics = finished.data.metrics
    assert metrics["run_s"] > metrics["fit_s"] > 1000  # includes the interrupted attempt


@pytest.mark.slow
def test_resume_warns_about_changed_settings(store: Path, whole: Path) -> None:
    resumed = (*LONG, f"trainer.resume={whole}", "tracking=none")
    done = cli(*resumed, "trainer.grad_clip=1", store=store)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stdout
    assert "trainer.grad_clip: None -> 1.0" in done.stdout


@pytest.mark.parametrize("change", ["optimizer.lr: 0.001 -> 0.002", "trainer.max_epochs: 3 -> 4"])
def test_resume_refuses_changes_of_the_optimizer_and_the_schedule(
    store: Path, whole: Path, change: str
) -> None:
    setting = change.split(":", maxsplit=1)[0] + "=" + change.rpartition(" ")[2]
    done = cli(*LONG, setting, f"trainer.resume={whole}", "tracking=none", store=store)
    assert done.returncode == 2, done.stderr
    assert change in done.stderr
    assert "cannot change" in done.stderr


def test_sigint_exits_with_130(store: Path) -> None:
    process = start(*LONG, store=store)
    output = kill_within_epoch_2(process, signal.SIGINT)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert recorded(store)[0].info.status == "KILLED"
