"""experiment=fast99 against a public recipe that reaches 99 % (tuomaso/train_mnist_fast)."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.peer_programs import train_mnist_fast
from benchmarks.workload import build_our_trainer
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker


def fast99(folder: Path, *, quick: bool) -> Iterator[Row]:
    n_seeds = 1 if quick else 10
    size = ["data=mnist5k", "data.train_size=640"] if quick else []
    runs = []
    for seed in range(n_seeds):
        overrides = ["experiment=fast99", f"seed={seed}", *size]
        trainer, data = build_our_trainer(overrides, folder / str(seed))
        started = time.monotonic()
        trainer.fit(Tracker(), Trial())
        accuracy = trainer.evaluate(data.test).accuracy
        runs.append((time.monotonic() - started, accuracy, *train_mnist_fast(seed, data)))
    ours_s, ours, peer_s, peer = map(statistics.mean, zip(*runs, strict=True))
    name = f"fast99, mean of {n_seeds} seeds"
    yield Row(f"{name}, training and test", "s", ours_s, peer_s, target=0.45)
    yield Row(f"{name}, test accuracy", "%", 100 * ours)
    yield Row(f"{name}, test accuracy of the peer", "%", 100 * peer)
