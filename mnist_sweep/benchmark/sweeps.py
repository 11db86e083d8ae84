"""What a sweep costs beside its trials; every sweep runs in a process of its own."""

import itertools
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_sweep.benchmark.measure import Row, Sizes, call
from mnist_sweep.benchmark.runs import first_steps

IDLE = ("-c", "from mnist_sweep.benchmark.idle import task; task()")
EMBEDDED = ["data=mnist5k", "model=simple"]
# A study of random points on one worker.
RANDOM = ["-m", "search=random", "pruner=none", "sweep.n_jobs=1", *EMBEDDED]
RANDOM += ["optimizer.lr=interval(1e-4,1e-3)", "data.batch_size=64"]


def sweeps(sizes: Sizes, folder: Path) -> Iterator[Row]:
    yield from engine(sizes, folder / "engine")
    yield from long_grid(sizes, folder / "grid")
    yield from recorded(sizes, folder / "recorded")
    yield from at_once(sizes, folder / "at_once")


def engine(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """What a trial costs that does nothing, also when the study has many; these are copies."""
    arguments = [*RANDOM, "tracking=none", "sweep.name=idle", f"store={folder}"]

    def seconds_a_trial(n: int) -> float:
        """Median of the ten trials around the nth."""
        call(*arguments, f"sweep.n_trials={n + 5}", program=IDLE)
        return statistics.median(engine_s(folder, "idle")[-10:])

    tenth_s = seconds_a_trial(10)
    yield Row("sweep: engine a trial, of a task that does nothing", "s", tenth_s, bar=1.0)
    for n, bar in zip(sizes.filled, (2.0, 4.0), strict=True):
        study = open_study(folder, "idle")
        found = trials_of(folder, "idle")
        study.add_trials([found[0]] * (n - 6 - len(found)))
        nth_s = seconds_a_trial(n)
        yield Row(f"sweep: engine, trial {n:,} against trial 10", "s", nth_s, tenth_s, bar)


def long_grid(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """The same of a grid, whose points are queued; here too most are copies."""
    from optuna.distributions import BaseDistribution, IntDistribution
    from optuna.trial import create_trial

    from mnist_sweep.sweep.storage import GRID

    def seconds_a_trial(n: int) -> float:
        grid = ["-m", f"seed=range(0,{n})", *EMBEDDED, "sweep.extend=true", "sweep.n_jobs=1"]
        call(*grid, "tracking=none", "sweep.name=grid", f"store={folder}", program=IDLE)
        return statistics.median(engine_s(folder, "grid")[-10:])

    n, tenth_s = sizes.filled[0], seconds_a_trial(15)
    study = open_study(folder, "grid")
    attributes = study.get_trials(deepcopy=False)[0].user_attrs
    seeds: dict[str, BaseDistribution] = {"seed": IntDistribution(0, n)}
    for seed in range(15, n - 11):
        key = {GRID: json.dumps({"seed": seed})}
        study.add_trial(
            create_trial(
                value=0.0,
                params={"seed": seed},
                distributions=seeds,
                user_attrs={**attributes, **key},
            )
        )
    yield Row(f"sweep: engine, trial {n:,} of a grid", "s", seconds_a_trial(n), tenth_s, 2.0)


def recorded(sizes: Sizes, folder: Path) -> Iterator[Row]:
    arguments = [*RANDOM, "trainer.max_epochs=1", "sweep.name=recorded", f"store={folder}"]
    call(*arguments, f"sweep.n_trials={sizes.trials}")
    seconds = statistics.median(engine_s(folder, "recorded")[1:])
    yield Row("sweep: engine, test and record a trial, embedded data", "s", seconds, bar=1.0)
    begun = {str(t.number): t.datetime_start.timestamp() for t in trials_of(folder, "recorded")[1:]}
    steps = first_steps(folder)
    to_step_s = [steps[trial] - started for trial, started in begun.items()]
    yield Row("sweep: a trial to its first step", "s", statistics.median(to_step_s), bar=0.3)


def at_once(sizes: Sizes, folder: Path) -> Iterator[Row]:
    """Trials an hour against their number at a time, on one GPU or on the cores."""
    import torch

    on_gpu = torch.cuda.is_available()
    key, counts = ("trials_per_gpu", (1, 2, 4, 8, 16)) if on_gpu else ("n_jobs", (1, 2))
    data = f"data.train_size={sizes.uneven_images}"  # of the embedded
    an_hour: dict[int, float] = {}
    for k in counts:
        n_trials = sizes.turns * max(counts)
        arguments = ["-m", f"seed=range({n_trials})", *EMBEDDED, data, f"sweep.{key}={k}"]
        seconds = call(*arguments, "sweep.name=k", "sweep.report=false", f"store={folder / str(k)}")
        an_hour[k] = 3600 * n_trials / seconds
    best = max(an_hour, key=lambda k: an_hour[k])
    bar = 4.0 if on_gpu else None
    for k in counts:
        what = f"sweep: trials an hour, {k} at once"
        yield Row(what, "1/h", an_hour[k], an_hour[1], bar if k == best else None, "at least")


def engine_s(store: Path, name: str) -> list[float]:
    """Seconds from the end of each trial to the end of the next, less its training and validation."""
    from mnist_sweep.sweep.storage import SUMMARY

    return [
        (after.datetime_complete - before.datetime_complete).total_seconds()
        - after.user_attrs[SUMMARY]["fit_s"]
        for before, after in itertools.pairwise(trials_of(store, name))
    ]


def trials_of(store: Path, name: str) -> Any:
    return open_study(store, name).get_trials(deepcopy=False)


def open_study(store: Path, name: str) -> Any:
    from mnist_sweep.sweep.storage import create_study, storage_url

    return create_study(storage_url(None, str(store)), 60, name, ["maximize"])
