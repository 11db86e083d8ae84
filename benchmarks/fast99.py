"""experiment=fast99 against the public recipe for 99 %, written plainly (tuomaso/train_mnist_fast)."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.measure import Row
from benchmarks.training import ready
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.training.reporting import Reporter, Tracker

BATCH_SIZE, LEARNING_RATE = 256, 0.01


def fast99(folder: Path, *, quick: bool) -> Iterator[Row]:
    n_seeds = 1 if quick else 10
    size = ["data.train_size=640"] if quick else []
    runs = []
    for seed in range(n_seeds):
        trainer, data = ready(["experiment=fast99", f"seed={seed}", *size], folder / str(seed))
        started = time.monotonic()
        trainer.fit(Tracker(), Reporter())
        accuracy = trainer.evaluate(data.test).accuracy
        runs.append((time.monotonic() - started, accuracy, *public_recipe(seed, data)))
    seconds, ours, their_seconds, theirs = map(statistics.mean, zip(*runs, strict=True))
    what = f"fast99, mean of {n_seeds} seeds"
    yield Row(f"{what}, training and test", "s", seconds, their_seconds, bar=0.45)
    yield Row(f"{what}, test accuracy", "%", 100 * ours)
    yield Row(f"{what}, test accuracy of the peer", "%", 100 * theirs)


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
    batches = torch.randperm(len(images), device=device).split(BATCH_SIZE)
    schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=len(batches), cycle_momentum=False)
    started = time.monotonic()
    for indices in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), data.train.labels[indices]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(x).argmax(1) for x in test_images.split(2000)])
    accuracy = (predicted == data.test.labels).float().mean().item()
    return time.monotonic() - started, accuracy
