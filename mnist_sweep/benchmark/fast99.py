"""experiment=fast99 against the public recipe for 99 %, written plainly (tuomaso/train_mnist_fast)."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from mnist_sweep.benchmark.measure import Row, Sizes, compose
from mnist_sweep.data import Dataset
from mnist_sweep.device import pick_device
from mnist_sweep.reporting import NullReporter
from mnist_sweep.train import build_model, build_trainer, load_data
from mnist_sweep.trainer import NullTracker

SEEDS = 10
BATCH_SIZE, LEARNING_RATE = 256, 0.01


def fast99(sizes: Sizes, folder: Path) -> Iterator[Row]:
    n_seeds = SEEDS if sizes.run_images is None else 1
    ours, plain = [], []
    for seed in range(n_seeds):
        overrides = ["experiment=fast99", f"seed={seed}"]
        if sizes.run_images is not None:
            overrides.append(f"data.train_size={sizes.run_images}")
        cfg = compose(overrides)
        data = load_data(cfg.data).to(pick_device(cfg.device))
        ours.append(recipe(cfg, data, folder / str(seed)))
        plain.append(public_recipe(seed, data))
    seconds, accuracy = (
        [statistics.mean(run[i] for run in runs) for runs in (ours, plain)] for i in (0, 1)
    )
    what = f"fast99, mean of {n_seeds} seeds"
    yield Row(f"{what}, training and test", "s", seconds[0], seconds[1], bar=0.45)
    yield Row(f"{what}, test accuracy", "%", 100 * accuracy[0])
    yield Row(f"{what}, test accuracy of the peer", "%", 100 * accuracy[1])


def recipe(cfg: DictConfig, data: Dataset, directory: Path) -> tuple[float, float]:
    """(seconds, test accuracy) of one run of ours, the validation at its end included."""
    torch.manual_seed(cfg.seed)
    model = build_model(cfg.model, data).to(data.train.images.device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = build_trainer(cfg, model, data, directory)
    started = time.monotonic()
    trainer.fit(NullTracker(), NullReporter())
    accuracy = trainer.evaluate(data.test).accuracy
    return time.monotonic() - started, accuracy


def public_recipe(seed: int, data: Dataset) -> tuple[float, float]:
    """(seconds, test accuracy): one epoch over float tensors, normalised beforehand."""
    torch.manual_seed(seed)
    device = data.train.images.device
    images, test_images = (
        (split.images.float() / 255 - data.mean[0]) / data.std[0]
        for split in (data.train, data.test)
    )
    model = nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    ).to(device)
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.7, 0.9))
    n_steps = -(-len(images) // BATCH_SIZE)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=n_steps, cycle_momentum=False)
    order = torch.randperm(len(images), device=device)
    started = time.monotonic()
    for indices in order.split(BATCH_SIZE):
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), data.train.labels[indices]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = [
            (model(x).argmax(1) == y).sum()
            for x, y in zip(test_images.split(2000), data.test.labels.split(2000), strict=True)
        ]
    accuracy = torch.stack(right).sum().item() / len(data.test)
    return time.monotonic() - started, accuracy
