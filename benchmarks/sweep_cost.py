"""What a sweep costs besides its training, and what its report costs."""

import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, run_command
from benchmarks.run_cost import first_step_times, peak_gib

IDLE_TASK = ("-m", "benchmarks.idle_task")
SMALL = ("data=mnist5k", "sweep.n_jobs=1", "sweep.report=false")
RANDOM = ("search=random", "pruner=none", *SMALL)


def sweep(folder: Path, *, quick: bool) -> Iterator[Row]:
    yield long_grid(25 if quick else 1000, folder / "grid")
    store = folder / "recorded"
    space = (*RANDOM, "model=simple", "data.batch_size=64", "trainer.max_epochs=1")
    seconds = engine_seconds(store, *space, f"sweep.n_trials={3 if quick else 22}")
    name = "sweep: engine, test and record a trial, embedded data"
    yield Row(name, "s", statistics.median(seconds), target=1.0)
    steps = first_step_times(store)
    starts = {str(t.number): t.datetime_start.timestamp() for t in get_trials(store)[1:]}
    to_first_step = statistics.median(steps[trial] - start for trial, start in starts.items())
    yield Row("sweep: a trial to its first step", "s", to_first_step, target=0.3)
    yield from at_once(folder / "at_once", quick=quick)


def engine(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Trials that train nothing: how many in a second, and how well trials of a second fill 8 workers."""
    for n_jobs in (1, 2, 4, 8):
        n = 20 if quick else 200
        seconds = idle_seconds(folder / str(n_jobs), n, n_jobs)
        yield Row(f"engine: trials a second, {n_jobs} workers", "1/s", n / seconds)
    n = 16 if quick else 400
    seconds = idle_seconds(folder / "waiting", n, 8, f"trainer.max_minutes={1 / 60}")
    name = f"engine: {n} trials of 1 s on 8 workers, against the ideal"
    yield Row(name, "s", seconds, n / 8, target=1.14)


def idle_seconds(store: Path, n_trials: int, n_jobs: int, *arguments: str) -> float:
    """Return the seconds of a random search from its first start of a trial to its last end."""
    space = ("trainer.label_smoothing=interval(0,0.5)", "search=random", "pruner=none")
    settings = ("space=none", "tracking=none", *SMALL[:1], "sweep.report=false", "sweep.name=s")
    size = (f"sweep.n_trials={n_trials}", f"sweep.n_jobs={n_jobs}", f"store={store}")
    run_command("-m", *space, *settings, *size, *arguments, program=IDLE_TASK)
    trials = get_trials(store)
    first = min(trial.datetime_start for trial in trials)
    return float((max(trial.datetime_complete for trial in trials) - first).total_seconds())


def long_grid(n: int, store: Path) -> Row:
    """Compare the engine's time for the nth trial of a grid with that for the tenth.

    The task trains nothing. Most trials in between are copies in the database.
    """
    from optuna.distributions import BaseDistribution, IntDistribution
    from optuna.trial import create_trial

    from mnist_sweep.sweep.study import GRID

    def seconds_of_a_trial(n: int) -> float:
        grid = (f"seed=range(0,{n})", "tracking=none", "sweep.extend=true", *SMALL)
        return statistics.median(engine_seconds(store, *grid, program=IDLE_TASK)[-10:])

    tenth_s = seconds_of_a_trial(15)
    attributes = get_trials(store)[0].user_attrs
    distributions: dict[str, BaseDistribution] = {"seed": IntDistribution(0, n)}
    copies = [
        create_trial(
            value=0.0,
            params={"seed": seed},
            distributions=distributions,
            user_attrs={**attributes, GRID: json.dumps({"seed": seed})},
        )
        for seed in range(15, n - 11)
    ]
    open_study(store).add_trials(copies)
    name = f"sweep: engine, trial {n:,} of a grid"
    return Row(name, "s", seconds_of_a_trial(n), tenth_s, target=2.0)


def at_once(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Trials per hour with several trials at once, on one GPU or on the cores of the CPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    setting, counts = ("trials_per_gpu", (1, 2, 4, 8, 16)) if on_gpu else ("n_jobs", (1, 2))
    n_trials = (1 if quick else 5) * max(counts)
    grid = ["data=mnist5k", "model=simple", f"data.train_size={100 if quick else 2000}"]
    grid += [f"seed=range({n_trials})", "sweep.name=s", "sweep.report=false"]
    per_hour = {}
    for n in counts:
        store = f"store={folder / str(n)}"
        seconds, _ = run_command("-m", *grid, f"sweep.{setting}={n}", store)
        per_hour[n] = 3600 * n_trials / seconds
    best, best_target = max(per_hour.values()), 4.0 if on_gpu else None
    for n, rate in per_hour.items():
        target = best_target if rate == best else None
        name = f"sweep: trials an hour, {n} at once"
        yield Row(name, "1/h", rate, per_hour[1], target, "at least")


def tracking(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Seconds that tracking adds to a run, from trials with and without it in alternation.

    The time of the training itself is subtracted, because it varies by more than tracking costs.
    """
    grid = (f"seed=range(0,{2 if quick else 6})", "tracking=mlflow,none", "tracking.figures=all")
    seconds = engine_seconds(folder, *grid, *SMALL, "trainer.max_epochs=3")
    added_s = statistics.median(seconds[1::2]) - statistics.median(seconds[::2])
    yield Row("tracking: seconds it adds to a run, simple, 3 epochs", "s", added_s, target=1.5)


def report(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Write the report of a sweep with a few real trials and many copies of them."""
    n = 12 if quick else 2000
    size = ("data.train_size=1000", "model=mlp", "trainer.max_epochs=2", "sweep.n_trials=6")
    engine_seconds(folder, *RANDOM, *size)
    add_copies(folder, n)
    started = time.monotonic()
    gib = peak_gib("report", "sweep=s", f"store={folder}")
    seconds = time.monotonic() - started
    page_mb = (folder / "outputs" / "s" / "report" / "report.html").stat().st_size / 1e6
    name = f"report of {n:,} stored runs"
    yield Row(f"{name}: time", "s", seconds, target=60)
    yield Row(f"{name}: peak RSS", "GiB", gib, target=2)
    yield Row(f"{name}: the page", "MB", page_mb, target=5)


def add_copies(store: Path, n: int) -> None:
    """Add copies of the trials and their MLflow runs, at random parameters, up to `n` of each."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from optuna.trial import create_trial

    from mnist_sweep.sweep.study import SUMMARY
    from mnist_sweep.tracking.run import store_uri

    originals = get_trials(store)
    client = MlflowClient(store_uri(None, str(store)))
    (run,) = client.search_runs(["1"], "tags.trial = '0'")
    metrics = [Metric(k, v, 0, 0) for k, v in run.data.metrics.items()]
    params = [Param(k, v) for k, v in run.data.params.items()]
    rng = random.Random(0)
    copies = []
    for number in range(len(originals), n):
        original = originals[number % len(originals)]
        point = {
            name: rng.choice(d.choices) if hasattr(d, "choices") else rng.uniform(d.low, d.high)
            for name, d in original.distributions.items()
        }
        cost = {"n_parameters": rng.randint(10**4, 10**7), "fit_s": rng.uniform(1, 100)}
        copies.append(
            create_trial(
                values=[original.value - rng.random() / 2],
                params=point,
                distributions=original.distributions,
                intermediate_values=original.intermediate_values,
                user_attrs={**original.user_attrs, SUMMARY: original.user_attrs[SUMMARY] | cost},
            )
        )
        tags = {**run.data.tags, "trial": str(number)}
        copy = client.create_run(run.info.experiment_id, tags=tags)
        client.log_batch(copy.info.run_id, metrics, params)
        client.set_terminated(copy.info.run_id)
    open_study(store).add_trials(copies)


def engine_seconds(store: Path, *arguments: str, **options: Any) -> list[float]:
    """Run a sweep; return the seconds between the ends of successive trials, minus the training."""
    from mnist_sweep.sweep.study import SUMMARY

    run_command("-m", *arguments, "sweep.name=s", f"store={store}", **options)
    return [
        (after.datetime_complete - before.datetime_complete).total_seconds()
        - after.user_attrs[SUMMARY]["fit_s"]
        for before, after in itertools.pairwise(get_trials(store))
    ]


def get_trials(store: Path) -> Any:
    return open_study(store).get_trials(deepcopy=False)


def open_study(store: Path) -> Any:
    from mnist_sweep.sweep.study import create_study, storage_url

    return create_study(storage_url(None, str(store)), 60, "s", ["maximize"])
