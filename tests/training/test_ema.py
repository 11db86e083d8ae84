"""The average of the weights, alone and in a run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.ema import ExponentialMovingAverage
from mnist_sweep.training.trainer import Trainer
from tests.helpers.toy import LOSS, toy_trainer


def test_average_follows_the_formula() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    # first step: min(0.2, 2 / 11), second: min(0.2, 3 / 12)
    average = ExponentialMovingAverage(model, decay=0.2)
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[1].running_mean.fill_(7.0)
    average.update(model)
    first = 2 / 11 * 1 + 9 / 11 * 3
    assert average.model[0].weight.item() == pytest.approx(first)
    assert average.model[1].running_mean.item() == 7.0
    average.update(model)
    assert average.model[0].weight.item() == pytest.approx(0.2 * first + 0.8 * 3)


def averaging_trainer(directory: Path, max_epochs: int) -> Trainer:
    torch.manual_seed(0)
    features = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    model = nn.Sequential(*features, nn.Linear(16, 2))
    settings = TrainerConfig(max_epochs=max_epochs, ema_decay=0.9)
    return toy_trainer(directory, settings, model=model, objective=LOSS)


def test_average_is_saved_and_survives_a_resume(tmp_path: Path) -> None:
    whole, first, second = (
        averaging_trainer(tmp_path / name, n) for name, n in (("whole", 3), ("cut", 1), ("on", 3))
    )
    whole.fit(Tracker(), Trial())
    first.fit(Tracker(), Trial())
    second.restore(tmp_path / "cut")
    second.fit(Tracker(), Trial())
    last, resumed = (checkpoint.load(tmp_path / d / checkpoint.LAST) for d in ("whole", "on"))
    for one, other in (
        (last["model"], resumed["model"]),
        (last["average"]["model"], resumed["average"]["model"]),
    ):
        assert all(torch.equal(one[key], other[key]) for key in one)
    weight = "4.weight"
    assert not torch.equal(last["model"][weight], last["average"]["model"][weight])
    assert whole.state.best_epoch == 3
    averaged = last["average"]["model"][weight]
    assert torch.equal(whole.step.model.state_dict()[weight], averaged)
    assert whole.evaluate(whole.data.val).loss == pytest.approx(-whole.state.best_score)
