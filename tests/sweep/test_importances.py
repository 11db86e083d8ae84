"""Parameter importances from studies made by hand."""

import random

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from mnist_sweep.sweep.importances import MIN_TRIALS, importances

DISTRIBUTIONS = {
    "model": CategoricalDistribution(["bad", "good"]),
    "lr": FloatDistribution(0.0, 1.0),
}


def make_study(n: int) -> optuna.Study:
    """The model makes 40 points of difference in epoch 1. Trials of the bad one are pruned there."""
    study, generator = optuna.create_study(direction="maximize"), random.Random(0)
    for i in range(n):
        model, lr = ("bad", "good")[i % 2], generator.random()
        first = {"bad": 0.5, "good": 0.9}[model] + 0.01 * lr
        complete = model == "good"
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=first + 0.05 if complete else None,
                params={"model": model, "lr": lr},
                distributions=DISTRIBUTIONS,
                intermediate_values={1: first, 2: first + 0.05} if complete else {1: first},
            )
        )
    return study


def test_pruned_trials_count_at_the_last_common_epoch() -> None:
    result = importances(make_study(40))
    assert result is not None
    assert (result.n_trials, result.step) == (40, 1)
    assert result.shares["model"] > 0.9
    assert "(40 trials at epoch 1)" in str(result)


def test_few_trials_have_no_importances() -> None:
    assert importances(make_study(MIN_TRIALS - 1)) is None
    assert importances(make_study(MIN_TRIALS)) is not None


def test_trials_without_reports_are_compared_by_their_values() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=MIN_TRIALS)
    result = importances(study)
    assert result is not None
    assert result.step is None
    assert result.shares == {"x": 1.0}
