"""Real processes, really killed."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mnist_sweep.training import checkpoint
from tests.helpers.cli import ROOT, cli, command, environment, recorded, run_directory, succeed

# All that draws random numbers or carries state between steps. More than a second an epoch.
LONG = [
    *("data=mnist5k", "model=deeper", "model.dropout=0.3", "model.batch_norm=true"),
    *("data.augment=affine", "scheduler=onecycle", "data.train_size=1200", "data.batch_size=12"),
    *("trainer.max_epochs=3", "device=cpu", "tracking.log_model=false"),
]


def start(*arguments: str, store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments, store=store),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_within_epoch_2(process: subprocess.Popen[str], signum: int) -> str:
    """Sends the signal a moment after the first epoch was told of; all that was printed."""
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
    """Bit by bit; all but the times of the clock."""
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


def assert_same_end(whole: Path, resumed: Path) -> None:
    for name in (checkpoint.BEST, checkpoint.LAST):
        assert_same(checkpoint.load(whole / name), checkpoint.load(resumed / name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing interrupted."""
    return succeed(*LONG, store=tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_sigterm_within_an_epoch_then_resume_ends_bit_identical(store: Path, whole: Path) -> None:
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
    assert_same_end(whole, resumed)
    done = recorded(store)[0]
    assert done.info.status == "FINISHED"
    history = MlflowClient(f"sqlite:///{store}/mlflow.db").get_metric_history(
        done.info.run_id, "val/loss"
    )
    assert [metric.step for metric in history] == [1, 2, 3]


@pytest.mark.slow
def test_sigkill_then_resume_from_the_last_epoch(store: Path, whole: Path) -> None:
    process = start(*LONG, store=store)
    stopped = run_directory(kill_within_epoch_2(process, signal.SIGKILL))
    (dead,) = recorded(store)
    assert dead.info.status == "RUNNING"  # nobody was left to say otherwise
    assert "val/loss" in dead.data.metrics  # its curves are there while it runs
    saved = checkpoint.load(stopped / checkpoint.LAST)
    assert saved["partial"] is None
    saved["state"]["seconds"] += 1000
    checkpoint.save(stopped / checkpoint.LAST, saved)

    done = cli(*LONG, "tracking.run_name=b", f"trainer.resume={stopped}", store=store)
    assert done.returncode == 0, done.stderr
    assert "marked KILLED" in done.stdout
    assert "WARNING" not in done.stdout  # the same configuration
    assert_same_end(whole, run_directory(done.stdout))
    finished, killed = recorded(store)
    assert (finished.info.status, killed.info.status) == ("FINISHED", "KILLED")
    assert finished.data.metrics["run_s"] > finished.data.metrics["fit_s"] > 1000  # both attempts


@pytest.mark.slow
def test_resume_of_a_finished_run_says_what_differs(store: Path, whole: Path) -> None:
    resumed = (*LONG, f"trainer.resume={whole}", "tracking=none")
    done = cli(*resumed, "trainer.grad_clip=1", store=store)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stdout
    assert "trainer.grad_clip: None -> 1.0" in done.stdout


@pytest.mark.parametrize("change", ["optimizer.lr: 0.001 -> 0.002", "trainer.max_epochs: 3 -> 4"])
def test_resume_refuses_what_the_checkpoint_brings(store: Path, whole: Path, change: str) -> None:
    """The schedule is made for these three epochs."""
    setting = change.split(":", maxsplit=1)[0] + "=" + change.rpartition(" ")[2]
    done = cli(*LONG, setting, f"trainer.resume={whole}", "tracking=none", store=store)
    assert done.returncode == 2, done.stderr
    assert change in done.stderr
    assert "cannot change" in done.stderr


def test_sigint_ends_with_130(store: Path) -> None:
    process = start(*LONG, store=store)
    output = kill_within_epoch_2(process, signal.SIGINT)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert recorded(store)[0].info.status == "KILLED"
