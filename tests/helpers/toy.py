"""A trainer on data so small and simple that tests know what must happen."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mnist_sweep.data.augment import Augment
from mnist_sweep.data.dataset import Dataset, Split
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.schedule import Schedule
from mnist_sweep.training.step import TrainingStep
from mnist_sweep.training.trainer import Objective, Trainer

N_TRAIN = 60


def toy_split(n: int, seed: int) -> Split:
    """Dark images have the label 0, bright ones 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 100, (n, 1, 4, 4), generator=generator) + 150 * labels.view(
        -1, 1, 1, 1
    )
    return Split(images.to(torch.uint8), labels, np.arange(n))


DATA = Dataset(
    "toy",
    ("dark", "bright"),
    toy_split(N_TRAIN, 1),
    toy_split(20, 2),
    toy_split(20, 3),
    "d",
    (0.5,),
    (0.3,),
)


ACCURACY = Objective("val/accuracy", maximize=True)
LOSS = Objective("val/loss", maximize=False)


SGD = partial(torch.optim.SGD, lr=0.1)


class MemoryTracker(Tracker):
    """Keeps the metrics of each epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, Mapping[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.epochs[step] = metrics


def toy_trainer(
    directory: Path,
    settings: TrainerConfig | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    interval: str = "epoch",
    objective: Objective = ACCURACY,
    data: Dataset = DATA,
    batch_size: int = 16,
    augment: Augment | None = None,
    seed: int = 0,
) -> Trainer:
    """Build a trainer of a linear model on 60 images of 4x4 pixels, in batches of 16."""
    torch.manual_seed(0)
    settings = settings or TrainerConfig(max_epochs=3)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    step = TrainingStep(
        model,
        optimizer(model.parameters()),
        data.train,
        settings,
        augment=augment,
        autocast_dtype=None,
        seed=seed,
    )
    schedule = Schedule(scheduler(step.optimizer) if scheduler else None, interval)
    return Trainer(
        data,
        step,
        schedule,
        settings,
        objective=objective,
        directory=directory,
        batch_size=batch_size,
    )
