"""The verdict and the next steps, from real studies in memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mnist_sweep.report.verdict import next_steps, verdict
from mnist_sweep.sweep import results
from mnist_sweep.sweep.results import About

ABOUT = About(
    ["val/accuracy"],
    ["data=mnist5k", "search=tpe space=none", "sweep.n_trials=9"],
    "/nowhere",
    program=["python", "-m", "mnist_sweep"],
)
LR = FloatDistribution(1e-4, 1e-1, log=True)


def make_study(*trials: tuple[dict[str, Any], float]) -> optuna.Study:
    """A study with a complete trial for each (parameters, value)."""
    study = optuna.create_study(direction="maximize")
    for params, value in trials:
        distributions = {
            k: LR if k == "optimizer.lr" else CategoricalDistribution([v])
            for k, v in params.items()
        }
        summary = {"best/val/accuracy": value, "best/train/accuracy": 0.999, "best_epoch": 3}
        study.add_trial(
            optuna.trial.create_trial(
                value=value,
                params=params,
                distributions=distributions,
                intermediate_values={3: value},
                user_attrs={"summary": summary},
            )
        )
    return study


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ((0.90, 0.91, 0.92), "This is more than noise (Welch"),
        ((0.93, 0.97, 0.94), "This may be noise (Welch"),
    ],
)
def test_verdict_tests_the_lead_over_several_seeds(
    others: tuple[float, ...], sentence: str
) -> None:
    first = [({"model": "a", "seed": s}, v) for s, v in enumerate((0.95, 0.951, 0.949))]
    second = [({"model": "b", "seed": s}, v) for s, v in enumerate(others)]
    sentences = verdict(results.ranked(make_study(*first, *second)), ABOUT, {})
    assert sentences[0] == "model=a has the best val/accuracy: 95.00 ± 0.10 % over 3 seeds."
    assert sentence in sentences[1]


def test_verdict_of_one_seed_compares_trained_models() -> None:
    configurations = results.ranked(make_study(({"model": "a"}, 0.99), ({"model": "b"}, 0.98)))
    correct = {0: np.ones(1000, bool), 1: np.arange(1000) >= 10}
    differ = (
        "Its lead over model=b (98.00) is 1 percentage points. These two trained models differ ("
    )
    assert differ in verdict(configurations, ABOUT, correct)[1]
    correct[1] = np.arange(1000) >= 2  # the models disagree on two images, as two coins might
    assert "models may be equally accurate (McNemar" in verdict(configurations, ABOUT, correct)[1]
    assert "unknown whether this is noise" in verdict(configurations, ABOUT, {})[1]


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_verdict_of_pure_noise_claims_no_difference_of_configurations(n_seeds: int) -> None:
    """The error of both configurations is 1 %, and that of each seed varies around it by 15 %."""
    rng = np.random.default_rng(0)
    n_claims = n_differing_models = 0
    for _ in range(200):
        errors = rng.normal(0.01, 0.0015, (2, n_seeds, 1))
        correct = rng.random((2, n_seeds, 5000)) >= errors
        seeds = [
            ({"model": name, "seed": seed}, float(right.mean()))
            for name, rights in zip("ab", correct, strict=True)
            for seed, right in enumerate(rights)
        ]
        numbered = dict(enumerate(correct.reshape(-1, 5000)))
        text = verdict(results.ranked(make_study(*seeds)), ABOUT, numbered)[1]
        n_claims += "more than noise" in text
        n_differing_models += "models differ" in text
    assert n_claims <= 200 * 0.05
    # more often than in 5 % of the cases: seeds differ, and the test on images does not know it
    assert n_differing_models == 0 if n_seeds > 1 else n_differing_models > 200 * 0.05


def test_verdict_without_a_complete_trial() -> None:
    assert verdict([], ABOUT, {}) == ["No trial completed."]


def test_next_steps_have_reasons_and_complete_commands() -> None:
    study = make_study(({"model": "a b", "optimizer.lr": 0.098}, 0.95))
    reasons, commands = zip(*next_steps(results.ranked(study), ABOUT), strict=True)
    assert "one seed" in reasons[0]
    assert commands[0] == (
        "python -m mnist_sweep -m data=mnist5k 'model=a b' optimizer.lr=0.098 seed=0,1,2 "
        "data.split_seed=0"
    )
    assert "edge" in reasons[1]
    assert commands[1].endswith(
        "'optimizer.lr=tag(log,interval(0.0098,0.98))' search=tpe space=none"
    )
    assert "Train longer" in reasons[2]
    assert commands[2].endswith("trainer.max_epochs=6")
    assert "4.9 points above" in reasons[3]
    assert commands[3].endswith("data.augment=affine")


def test_next_steps_leave_out_what_does_not_apply() -> None:
    study = make_study(*(({"optimizer.lr": 0.003, "seed": s}, 0.99 + s / 1e4) for s in range(2)))
    reasons = " ".join(step.reason for step in next_steps(results.ranked(study), ABOUT))
    assert "edge" not in reasons
    assert "seed" not in reasons


def test_no_next_steps_for_an_application_that_lacks_their_settings() -> None:
    study = make_study(({"optimizer.lr": 0.098}, 0.95))
    assert next_steps(results.ranked(study), replace(ABOUT, own_keys=[])) == []
