"""What the report of a long sweep costs: a few real trials, the others copies of them."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from mnist_sweep.benchmark.measure import Row, Sizes, call
from mnist_sweep.benchmark.runs import peak_gib
from mnist_sweep.benchmark.sweeps import open_study

SWEEP = ("-m", "search=random", "pruner=none", "data=mnist5k", "data.train_size=1000")


def reports(sizes: Sizes, folder: Path) -> Iterator[Row]:
    space = ("model=mlp", "trainer.max_epochs=2", "sweep.n_trials=6", "sweep.name=long")
    call(*SWEEP, *space, "sweep.report=false", f"store={folder}")
    fill(folder, sizes.reported)
    module = ("mnist_sweep.report", "sweep=long", f"store={folder}")
    started = time.monotonic()
    gib = peak_gib(*module)
    seconds = time.monotonic() - started
    size = (folder / "outputs" / "long" / "report" / "report.html").stat().st_size / 1e6
    what = f"report of {sizes.reported:,} stored runs"
    yield Row(f"{what}: time", "s", seconds, bar=60)
    yield Row(f"{what}: peak RSS", "GiB", gib, bar=2)
    yield Row(f"{what}: the page", "MB", size, bar=5)


def fill(store: Path, n: int) -> None:
    """Copy the trials and their MLflow runs, at random points, until there are `n` of each."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from optuna.trial import create_trial

    from mnist_sweep import tracking
    from mnist_sweep.sweep.storage import SUMMARY

    study = open_study(store, "long")
    real = study.get_trials(deepcopy=False)
    client = MlflowClient(tracking.store_uri(None, str(store)))
    (run,) = client.search_runs(["1"], "tags.trial = '0'")
    draw = random.Random(0)
    copies = []
    for number in range(len(real), n):
        pattern = real[number % len(real)]
        params = {
            name: draw.choice(d.choices) if hasattr(d, "choices") else draw.uniform(d.low, d.high)
            for name, d in pattern.distributions.items()
        }
        cost = {"n_parameters": draw.randint(10**4, 10**7), "fit_s": draw.uniform(1, 100)}
        copies.append(
            create_trial(
                values=[pattern.value - draw.random() / 2],
                params=params,
                distributions=pattern.distributions,
                intermediate_values=pattern.intermediate_values,
                user_attrs={**pattern.user_attrs, SUMMARY: pattern.user_attrs[SUMMARY] | cost},
            )
        )
        tags = {**run.data.tags, "trial": str(number)}
        copy = client.create_run(run.info.experiment_id, tags=tags)
        client.log_batch(
            copy.info.run_id,
            [Metric(k, v, 0, 0) for k, v in run.data.metrics.items()],
            [Param(k, v) for k, v in run.data.params.items()],
        )
        client.set_terminated(copy.info.run_id)
    study.add_trials(copies)
