"""What a study says: who wins, whether that is noise, what to try next. Real studies in memory."""

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mnist_sweep.report.verdict import next_steps, verdict
from mnist_sweep.sweep import results
from mnist_sweep.sweep.results import About, format_metric

ABOUT = About(
    ["val/accuracy"], ["data=mnist5k", "search=tpe space=none", "sweep.n_trials=9"], "/nowhere"
)
LR = FloatDistribution(1e-4, 1e-1, log=True)


def study(*scored: tuple[dict[str, Any], float]) -> optuna.Study:
    made = optuna.create_study(direction="maximize")
    for params, value in scored:
        distributions = {
            k: LR if k == "optimizer.lr" else CategoricalDistribution([v])
            for k, v in params.items()
        }
        summary = {"best/val/accuracy": value, "best/train/accuracy": 0.999, "best_epoch": 3}
        made.add_trial(
            optuna.trial.create_trial(
                value=value,
                params=params,
                distributions=distributions,
                intermediate_values={3: value},
                user_attrs={"summary": summary},
            )
        )
    return made


def test_configurations_are_ranked_by_their_mean_over_seeds() -> None:
    lucky = [({"model": "a", "seed": s}, v) for s, v in enumerate((0.99, 0.80))]
    steady = [({"model": "b", "seed": s}, v) for s, v in enumerate((0.95, 0.94))]
    found = results.ranked(study(*lucky, *steady))
    assert [c.params for c in found] == [{"model": "b"}, {"model": "a"}]
    assert found[0].scores == [0.95, 0.94]
    assert format_metric("val/accuracy", found[0].scores) == "94.50 ± 0.71"
    assert format_metric("val/loss", [0.25]) == "0.2500"


@pytest.mark.parametrize(
    ("others", "says"),
    [((0.90, 0.91, 0.92), "more than noise (Welch"), ((0.93, 0.97, 0.94), "may be noise (Welch")],
)
def test_verdict_tests_the_lead_over_the_seeds(others: tuple[float, ...], says: str) -> None:
    best = [({"model": "a", "seed": s}, v) for s, v in enumerate((0.95, 0.951, 0.949))]
    second = [({"model": "b", "seed": s}, v) for s, v in enumerate(others)]
    lines = verdict(results.ranked(study(*best, *second)), ABOUT, {})
    assert lines[0] == "model=a wins: val/accuracy 95.00 ± 0.10 %, 3 seeds."
    assert says in lines[1]


def test_verdict_of_one_seed_tests_the_validation_images() -> None:
    found = results.ranked(study(({"model": "a"}, 0.99), ({"model": "b"}, 0.98)))
    right = {0: np.ones(1000, bool), 1: np.arange(1000) >= 10}
    assert "more than noise (McNemar's test on 1,000" in verdict(found, ABOUT, right)[1]
    right[1] = np.arange(1000) >= 2  # two images are a coin thrown twice
    assert "may be noise (McNemar" in verdict(found, ABOUT, right)[1]
    assert "cannot be said" in verdict(found, ABOUT, {})[1]


def test_verdict_without_a_complete_trial() -> None:
    assert verdict([], ABOUT, {}) == ["No trial completed."]


def test_next_steps_come_with_commands_that_say_all() -> None:
    made = study(({"model": "a b", "optimizer.lr": 0.098}, 0.95))
    steps = dict(next_steps(made, results.ranked(made), ABOUT))
    texts, commands = list(steps), list(steps.values())
    assert "One seed is no proof" in texts[0]
    assert commands[0] == (
        "python -m mnist_sweep -m data=mnist5k 'model=a b' optimizer.lr=0.098 seed=0,1,2 "
        "data.split_seed=0"
    )
    assert "edge" in texts[1]
    assert commands[1].endswith(
        "'optimizer.lr=tag(log,interval(0.0098,0.98))' search=tpe space=none"
    )
    assert "train longer" in texts[2]
    assert commands[2].endswith("trainer.max_epochs=6")
    assert "4.9 points better in training" in texts[3]
    inside = study(*(({"optimizer.lr": 0.003, "seed": s}, 0.99 + s / 1e4) for s in range(2)))
    why = " ".join(w for w, _ in next_steps(inside, results.ranked(inside), ABOUT))
    assert "edge" not in why
    assert "seed" not in why
