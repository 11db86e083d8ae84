"""Checkpoints that fit, and those that do not."""

import tarfile
from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.run import train
from tests.helpers.cli import ROOT
from tests.helpers.configs import composed
from tests.helpers.toy import N_TRAIN, MemoryTracker, toy_trainer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    toy_trainer(tmp_path / "run").fit(MemoryTracker(), Trial())
    return tmp_path / "run"


def test_restore_refuses_another_model(run: Path, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2))
    with pytest.raises(UserError, match=f"cannot resume from {run}: its configuration"):
        toy_trainer(tmp_path / "new", model=other).restore(run)


def test_restore_refuses_other_data(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    checkpoint.save(run / checkpoint.LAST, {**saved, "data": "another digest"})
    with pytest.raises(UserError, match="other data than toy"):
        toy_trainer(tmp_path / "new").restore(run)


def test_restore_refuses_a_damaged_file(run: Path, tmp_path: Path) -> None:
    last = run / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        toy_trainer(tmp_path / "new").restore(run)


def test_restore_within_an_epoch_refuses_another_batch_size(run: Path, tmp_path: Path) -> None:
    partial = {
        "order": torch.arange(N_TRAIN),
        "losses": torch.zeros(4),
        "correct": torch.tensor(0),
        "step": 1,
        "seconds": 1.0,
    }
    saved = checkpoint.load(run / checkpoint.LAST)
    checkpoint.save(run / checkpoint.LAST, {**saved, "partial": partial})
    toy_trainer(tmp_path / "new").restore(run)
    with pytest.raises(UserError, match="stopped within an epoch"):
        toy_trainer(tmp_path / "new", batch_size=8).restore(run)


def test_restore_on_another_kind_of_device_warns_and_draws_other_numbers(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    cuda = {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}  # CUDA's format
    checkpoint.save(run / checkpoint.LAST, saved | cuda)
    resumed = toy_trainer(tmp_path / "new", TrainerConfig(max_epochs=4))
    resumed.restore(run)
    assert "ran on cuda: the results will not be bit-identical" in caplog.text
    assert resumed.fit(MemoryTracker(), Trial()).epoch == 4


def test_restore_in_the_same_directory_keeps_the_best_model(run: Path) -> None:
    best = checkpoint.load_best(run)
    toy_trainer(run).restore(run)
    assert checkpoint.load_best(run).epoch == best.epoch


def test_checkpoint_of_the_first_version_resumes(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "helpers" / "store-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    old = tmp_path / "store" / "outputs" / "single"
    recorded = (old / ".hydra" / "overrides.yaml").read_text()
    overrides = [line.removeprefix("- ") for line in recorded.splitlines()]
    changes = "trainer.max_epochs=2", f"trainer.resume={old}"
    train(composed(*overrides, *changes), tmp_path / "new", Tracker(), Trial())
    before, after = (checkpoint.load(path / checkpoint.LAST) for path in (old, tmp_path / "new"))
    assert before.keys() == after.keys()
    assert before["state"]["epoch"] == 1
    assert after["state"]["history"][0] == before["state"]["history"][0]
    assert after["state"]["epoch"] == 2
    assert checkpoint.load(old / checkpoint.BEST).keys() == vars(checkpoint.load_best(old)).keys()
