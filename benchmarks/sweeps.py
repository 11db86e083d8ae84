"""What a sweep costs beside its trials, and its report; every sweep runs in a process of its own."""

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from benchmarks.measure import Row, call
from benchmarks.runs import first_steps, peak_gib
from mnist_sweep.config import CONF_DIR
from mnist_sweep.training.reporting import REPORTER

IDLE = ("-c", "from mnist_sweep.benchmark.sweeps import idle; idle()")
SMALL = ("data=mnist5k", "sweep.n_jobs=1", "sweep.report=false")
RANDOM = ("search=random", "pruner=none", *SMALL)


@hydra.main(config_path=str(CONF_DIR), config_name="config")
def idle(cfg: DictConfig) -> float:
    """A task that trains nothing: all that its trials cost is the engine."""
    reporter = REPORTER.get()
    reporter.report(1, {cfg.objective: 0.0})
    reporter.finish({f"best/{cfg.objective}": 0.0, "fit_s": 0.0})
    return 0.0


def sweep(folder: Path, *, quick: bool) -> Iterator[Row]:
    yield long_grid(25 if quick else 1000, folder / "grid")
    store = folder / "recorded"
    space = (*RANDOM, "model=simple", "data.batch_size=64", "trainer.max_epochs=1")
    seconds = engine_s(store, *space, f"sweep.n_trials={3 if quick else 22}")
    what = "sweep: engine, test and record a trial, embedded data"
    yield Row(what, "s", statistics.median(seconds), bar=1.0)
    steps = first_steps(store)
    begun = {str(t.number): t.datetime_start.timestamp() for t in trials_of(store)[1:]}
    to_step_s = statistics.median(steps[trial] - started for trial, started in begun.items())
    yield Row("sweep: a trial to its first step", "s", to_step_s, bar=0.3)
    yield from at_once(folder / "at_once", quick=quick)


def long_grid(n: int, store: Path) -> Row:
    """The nth trial of a grid against the tenth, of a task that does nothing; most between are copies."""
    from optuna.distributions import BaseDistribution, IntDistribution
    from optuna.trial import create_trial

    from mnist_sweep.sweep.study import GRID

    def seconds_a_trial(n: int) -> float:
        grid = (f"seed=range(0,{n})", "tracking=none", "sweep.extend=true", *SMALL)
        return statistics.median(engine_s(store, *grid, program=IDLE)[-10:])

    tenth_s = seconds_a_trial(15)
    attributes = trials_of(store)[0].user_attrs
    seeds: dict[str, BaseDistribution] = {"seed": IntDistribution(0, n)}
    copies = [
        create_trial(
            value=0.0,
            params={"seed": seed},
            distributions=seeds,
            user_attrs={**attributes, GRID: json.dumps({"seed": seed})},
        )
        for seed in range(15, n - 11)
    ]
    open_study(store).add_trials(copies)
    return Row(f"sweep: engine, trial {n:,} of a grid", "s", seconds_a_trial(n), tenth_s, 2.0)


def at_once(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Trials an hour against their number at a time, on one GPU or on the cores."""
    import torch

    on_gpu = torch.cuda.is_available()
    key, counts = ("trials_per_gpu", (1, 2, 4, 8, 16)) if on_gpu else ("n_jobs", (1, 2))
    n_trials = (1 if quick else 5) * max(counts)
    grid = ["data=mnist5k", "model=simple", f"data.train_size={100 if quick else 2000}"]
    grid += [f"seed=range({n_trials})", "sweep.name=s", "sweep.report=false"]
    an_hour = {}
    for k in counts:
        seconds, _ = call("-m", *grid, f"sweep.{key}={k}", f"store={folder / str(k)}")
        an_hour[k] = 3600 * n_trials / seconds
    best, bar = max(an_hour.values()), 4.0 if on_gpu else None
    for k, reached in an_hour.items():
        what = f"sweep: trials an hour, {k} at once"
        yield Row(what, "1/h", reached, an_hour[1], bar if reached == best else None, "at least")


def tracking(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Trials with and without it in turn; training is left out, it varies by more than its record."""
    grid = (f"seed=range(0,{2 if quick else 6})", "tracking=mlflow,none", "tracking.figures=all")
    seconds = engine_s(folder, *grid, *SMALL, "trainer.max_epochs=3")
    added_s = statistics.median(seconds[1::2]) - statistics.median(seconds[::2])
    yield Row("tracking: seconds it adds to a run, simple, 3 epochs", "s", added_s, bar=1.5)


def report(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Of a few real trials and many copies of them."""
    n = 12 if quick else 2000
    size = ("data.train_size=1000", "model=mlp", "trainer.max_epochs=2", "sweep.n_trials=6")
    engine_s(folder, *RANDOM, *size)
    fill(folder, n)
    started = time.monotonic()
    gib = peak_gib("mnist_sweep.report", "sweep=s", f"store={folder}")
    seconds = time.monotonic() - started
    size_mb = (folder / "outputs" / "s" / "report" / "report.html").stat().st_size / 1e6
    what = f"report of {n:,} stored runs"
    yield Row(f"{what}: time", "s", seconds, bar=60)
    yield Row(f"{what}: peak RSS", "GiB", gib, bar=2)
    yield Row(f"{what}: the page", "MB", size_mb, bar=5)


def fill(store: Path, n: int) -> None:
    """Copy the trials and their MLflow runs, at random points, until there are `n` of each."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from optuna.trial import create_trial

    from mnist_sweep.sweep.study import SUMMARY
    from mnist_sweep.tracking import run as tracking

    real = trials_of(store)
    client = MlflowClient(tracking.store_uri(None, str(store)))
    (run,) = client.search_runs(["1"], "tags.trial = '0'")
    metrics = [Metric(k, v, 0, 0) for k, v in run.data.metrics.items()]
    params = [Param(k, v) for k, v in run.data.params.items()]
    draw = random.Random(0)
    copies = []
    for number in range(len(real), n):
        pattern = real[number % len(real)]
        point = {
            name: draw.choice(d.choices) if hasattr(d, "choices") else draw.uniform(d.low, d.high)
            for name, d in pattern.distributions.items()
        }
        cost = {"n_parameters": draw.randint(10**4, 10**7), "fit_s": draw.uniform(1, 100)}
        copies.append(
            create_trial(
                values=[pattern.value - draw.random() / 2],
                params=point,
                distributions=pattern.distributions,
                intermediate_values=pattern.intermediate_values,
                user_attrs={**pattern.user_attrs, SUMMARY: pattern.user_attrs[SUMMARY] | cost},
            )
        )
        tags = {**run.data.tags, "trial": str(number)}
        copy = client.create_run(run.info.experiment_id, tags=tags)
        client.log_batch(copy.info.run_id, metrics, params)
        client.set_terminated(copy.info.run_id)
    open_study(store).add_trials(copies)


def engine_s(store: Path, *arguments: str, **how: Any) -> list[float]:
    """Runs a sweep: seconds from the end of each trial to the end of the next, less its training."""
    from mnist_sweep.sweep.study import SUMMARY

    call("-m", *arguments, "sweep.name=s", f"store={store}", **how)
    return [
        (after.datetime_complete - before.datetime_complete).total_seconds()
        - after.user_attrs[SUMMARY]["fit_s"]
        for before, after in itertools.pairwise(trials_of(store))
    ]


def trials_of(store: Path) -> Any:
    return open_study(store).get_trials(deepcopy=False)


def open_study(store: Path) -> Any:
    from mnist_sweep.sweep.study import create_study, storage_url

    return create_study(storage_url(None, str(store)), 60, "s", ["maximize"])
