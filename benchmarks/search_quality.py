"""Quality of a search: how close its best trial comes to the best of a table of trainings."""

import heapq
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from benchmarks.measure import Row
from benchmarks.search_peers import plain_optuna, stock_sweeper
from benchmarks.search_tables import FAMILIES, TABLES, Table, load_table
from benchmarks.workload import compose
from mnist_sweep.common.processes import process_identity
from mnist_sweep.sweep import samplers
from mnist_sweep.sweep.config import resolved
from mnist_sweep.sweep.coordinator import Coordinator
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.space import parse
from mnist_sweep.sweep.study import INTERRUPTED
from mnist_sweep.sweep.worker import Result

BUDGETS = (25, 50, 100)  # trials after which the regret is measured
N_SEEDS = 20
N_CUTS = 5  # interruptions of a sweep
HERE = process_identity()

# Searches a table with a seed; returns the losses of n trials in the order in which they started.
# So the first k losses are those of a search of k trials.
Search = Callable[[Table, int, int], list[float]]
Regrets = NDArray[np.float64]  # [n_tables, n_seeds]


def search(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Compare searches by regret and rank, and check what workers and interruptions cost."""
    tables, budgets, n_seeds = (TABLES[-1:], (5, 15), 2) if quick else (TABLES, BUDGETS, N_SEEDS)
    measured = measure(
        {**SEARCHES, **DISTURBED, **PEERS}, tables, budgets, n_seeds, in_pool=not quick
    )
    for n, regrets in measured.items():
        _, limit = confidence_interval(regrets[SEQUENTIAL])
        for name, values in regrets.items():
            label = f"search: regret after {n} trials, {name}"
            yield regret_row(label, values, limit if name in DISTURBED else None)
        compared = {name: values for name, values in regrets.items() if name in SEARCHES}
        for name, rank in mean_ranks(compared).items():
            yield Row(f"search: mean rank after {n} trials, {name}", f"of {len(compared)}", rank)
    for family, (name, values) in product(FAMILIES, compared.items()):
        if of_family := [i for i, table in enumerate(tables) if table[0] == family]:
            label = f"search: {family}, regret after {n} trials, {name}"
            yield regret_row(label, values[of_family])


def regret_row(label: str, values: Regrets, target: float | None = None) -> Row:
    interval = confidence_interval(values)
    return Row(label, "", float(values.mean()), target=target, interval=interval)


def measure(
    searches: Mapping[str, Search],
    tables: Sequence[tuple[str, str]],
    budgets: Sequence[int],
    n_seeds: int,
    *,
    in_pool: bool,
) -> dict[int, dict[str, Regrets]]:
    """Return the regrets of each search after each number of trials."""
    jobs = list(product(tables, searches, range(n_seeds)))
    run = partial(regrets_of, searches, budgets)
    if in_pool:
        # not forked: torch has started threads in this process
        with ProcessPoolExecutor(
            os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
        ) as pool:
            results = list(pool.map(run, jobs, chunksize=n_seeds))
    else:
        results = [run(job) for job in jobs]
    shape = (len(tables), len(searches), n_seeds, len(budgets))
    values = np.array(results, dtype=np.float64).reshape(shape)
    return {
        n: {
            name: values[:, i, :, j]
            for i, name in enumerate(searches)
            if n <= MAX_TRIALS.get(name, n)
        }
        for j, n in enumerate(budgets)
    }


def regrets_of(
    searches: Mapping[str, Search], budgets: Sequence[int], job: tuple[tuple[str, str], str, int]
) -> list[float]:
    """Run one search. Returns the regret of its best trial after each number of trials."""
    table_name, name, seed = job
    table = load_table(*table_name)
    n_trials = min(max(budgets), MAX_TRIALS.get(name, max(budgets)))
    losses = searches[name](table, seed, n_trials)
    return [table.regret(min(losses[:n])) for n in budgets]


def confidence_interval(values: Regrets) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t from the seeds' means over the tables."""
    of_seeds = values.mean(axis=0)
    half = stats.t.ppf(0.975, len(of_seeds) - 1) * stats.sem(of_seeds)
    return float(of_seeds.mean() - half), float(of_seeds.mean() + half)


def mean_ranks(regrets: Mapping[str, Regrets]) -> dict[str, float]:
    """Rank the searches on each table by their mean over seeds, and average over the tables."""
    means = np.array([values.mean(axis=1) for values in regrets.values()])
    ranks = stats.rankdata(means, axis=0).mean(axis=1)
    return dict(zip(regrets, map(float, ranks), strict=True))


class MemoryStorage(InMemoryStorage):
    """A study without a database, because commits would take most of the time."""

    def claim(self, trial_id: int, attributes: Mapping[str, Any]) -> bool:
        self._set(trial_id, attributes)
        return self.set_trial_state_values(trial_id, TrialState.RUNNING)

    def replace(
        self, study_id: int, trial_id: int, attributes: Mapping[str, Any], successor: FrozenTrial
    ) -> bool:
        self._set(trial_id, attributes)
        self.set_trial_state_values(trial_id, TrialState.FAIL)
        self.create_new_trial(study_id, successor)
        return True

    def _set(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.set_trial_user_attr(trial_id, key, value)


def sweep(
    choice: str, table: Table, seed: int, n_trials: int, *, n_workers: int = 1, n_cuts: int = 0
) -> list[float]:
    """Run a sweep as its coordinator would see it, in simulated time.

    The training times of the table decide which trial ends next. At an interruption all running
    trials are queued again, and a new coordinator continues the study.

    Args:
        choice: of `conf/search`, with its defaults.
        n_workers: trials that run at once.
        n_cuts: interruptions, each while the next trials are running.
    """
    settings = OmegaConf.merge(search_settings(choice), {"seed": seed, "n_trials": n_trials})
    assert isinstance(settings, DictConfig)
    cuts = random.Random(seed).sample(range(n_trials), n_cuts)
    storage = MemoryStorage()
    coordinator = open_coordinator(storage, settings, table)
    losses: dict[int, float] = {}
    running: list[tuple[float, int, float]] = []  # heap of end in seconds, number, loss
    now = 0.0
    while True:
        while len(running) < n_workers and (assignment := coordinator.next(HERE)):
            loss, seconds = table.look_up(assignment.params)
            heapq.heappush(running, (now + seconds, assignment.number, loss))
        if len(losses) in cuts:
            cuts.remove(len(losses))
            coordinator.stop(INTERRUPTED)
            for _, number, _ in running:
                coordinator.release(number, INTERRUPTED)
            running.clear()
            coordinator = open_coordinator(storage, settings, table)
        elif running:
            now, number, loss = heapq.heappop(running)
            coordinator.tell(number, Result(values=[loss]))
            losses[number] = loss
        else:
            return [losses[number] for number in sorted(losses)]


@cache
def search_settings(choice: str) -> DictConfig:
    """The settings of a sweep. The tables hold final values only, so that no trial can be pruned."""
    cfg = compose([f"search={choice}", "space=none", "pruner=none"])
    return resolved(cfg.sweep, "sweep")


def open_coordinator(storage: MemoryStorage, settings: DictConfig, table: Table) -> Coordinator:
    """Open the study as the driver does."""
    study = optuna.create_study(
        storage=storage,
        study_name="s",
        load_if_exists=True,
        sampler=samplers.make_sampler(settings),
        pruner=samplers.make_pruner(settings),
    )
    plan = Plan(
        invocation="i",
        failed_before=frozenset(),
        study_name="s",
        space=parse(settings, table.overrides()),
        n_trials=settings.n_trials,
        grid=None,
        metrics=["loss"],
        settings=settings,
        directory=Path("unused"),
        driver=HERE,
        tags={},
    )
    return Coordinator(study, plan, OmegaConf.create())


SEQUENTIAL = "tpe"  # the search without what disturbs the next ones
SEARCHES: dict[str, Search] = {
    SEQUENTIAL: partial(sweep, "tpe"),
    "random": partial(sweep, "random"),
    "gp": partial(sweep, "gp"),
    "stock sweeper": stock_sweeper,
    "plain Optuna": partial(plain_optuna, optuna.samplers.TPESampler),
    "plain Optuna, random": partial(plain_optuna, optuna.samplers.RandomSampler),
}
MAX_TRIALS = {"gp": 50}  # 100 take 10 s
# compared with the sequential search
DISTURBED: dict[str, Search] = {
    "tpe, 4 workers": partial(sweep, "tpe", n_workers=4),
    "tpe, 16 workers": partial(sweep, "tpe", n_workers=16),
    "tpe, interrupted": partial(sweep, "tpe", n_cuts=N_CUTS),
    "tpe, 4 workers, interrupted": partial(sweep, "tpe", n_workers=4, n_cuts=N_CUTS),
}
# compared with the search with as many workers
PEERS: dict[str, Search] = {
    f"plain Optuna, {n} workers": partial(plain_optuna, optuna.samplers.TPESampler, n_workers=n)
    for n in (4, 16)
}
