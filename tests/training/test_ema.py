"""The average of the weights, and a run that keeps it."""

import numpy as np
import pytest
import torch
from torch import nn

from mnist_sweep.config import TrainerConfig
from mnist_sweep.data.dataset import split_arrays
from mnist_sweep.data.sources import Arrays
from mnist_sweep.models import Classifier
from mnist_sweep.training import checkpoint
from mnist_sweep.training.ema import Average
from mnist_sweep.training.reporting import Reporter, Tracker
from mnist_sweep.training.trainer import Trainer


def test_average_follows_the_formula():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    average = Average(model, decay=0.2)  # first step: min(0.2, 2 / 11), second: min(0.2, 3 / 12)
    with torch.no_grad():
        model[0].weight.fill_(3.0)
        model[1].running_mean.fill_(7.0)
    average.update(model)
    first = 2 / 11 * 1 + 9 / 11 * 3
    assert average.model[0].weight.item() == pytest.approx(first)
    assert average.model[1].running_mean.item() == 7.0
    average.update(model)
    assert average.model[0].weight.item() == pytest.approx(0.2 * first + 0.8 * 3)


def noise():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 1, 6, 6), dtype=np.uint8)
    return Arrays(images, np.arange(60) % 3, images[:9], np.arange(9) % 3)


def trainer(directory, max_epochs):
    torch.manual_seed(0)
    data = split_arrays(noise(), name="noise", val_size=12, split_seed=0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = Classifier(net, data.mean, data.std)
    return Trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        None,
        data,
        TrainerConfig(max_epochs=max_epochs, ema_decay=0.9),
        interval="epoch",
        batch_size=16,
        augment=None,
        autocast_dtype=None,
        objective="val/loss",
        maximize=False,
        directory=directory,
        seed=0,
    )


def test_average_is_kept_and_survives_a_resume(tmp_path):
    whole, first, second = (
        trainer(tmp_path / name, n) for name, n in (("whole", 3), ("cut", 1), ("on", 3))
    )
    whole.fit(Tracker(), Reporter())
    first.fit(Tracker(), Reporter())
    second.restore(tmp_path / "cut")
    second.fit(Tracker(), Reporter())
    saved = [checkpoint.load(tmp_path / d / checkpoint.LAST) for d in ("whole", "on")]
    for part in ("model", "average"):
        whole_state, resumed = (s[part].get("model", s[part]) for s in saved)
        assert all(torch.equal(whole_state[key], resumed[key]) for key in whole_state)
    last = saved[0]
    weight = "net.0.weight"
    assert not torch.equal(last["model"][weight], last["average"]["model"][weight])
    if whole.state.best_epoch == 3:  # what is kept are the averaged weights
        assert torch.equal(whole.model.state_dict()[weight], last["average"]["model"][weight])
    assert whole.evaluate(whole.data.val).loss == pytest.approx(whole.state.best_score * -1)
