"""Results of a study in memory: ranking, leaderboard, formatting."""

from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from mnist_sweep.sweep import results
from mnist_sweep.sweep.results import About


def make_study(*trials: tuple[dict[str, Any], float]) -> optuna.Study:
    """A study with a complete trial for each (parameters, value)."""
    study = optuna.create_study(direction="maximize")
    for params, value in trials:
        distributions = {name: CategoricalDistribution([v]) for name, v in params.items()}
        trial = optuna.trial.create_trial(
            value=value,
            params=params,
            distributions=distributions,
            user_attrs={"summary": {"n_parameters": 1234}},
        )
        study.add_trial(trial)
    About(["val/accuracy"], [], "/nowhere", columns={"n_parameters": "size"}).save(study)
    return study


LUCKY = [({"model": "a", "seed": s}, v) for s, v in enumerate((0.99, 0.80))]
STEADY = [({"model": "b", "seed": s}, v) for s, v in enumerate((0.95, 0.94))]


def test_configurations_are_ranked_by_their_mean_over_seeds() -> None:
    configurations = results.ranked(make_study(*LUCKY, *STEADY))
    assert [c.params for c in configurations] == [{"model": "b"}, {"model": "a"}]
    assert configurations[0].scores == [0.95, 0.94]


def test_leaderboard_has_a_row_for_each_configuration() -> None:
    rows = results.leaderboard(make_study(*LUCKY, *STEADY))
    assert rows[0] == {
        "rank": "1",
        "trial": "2",
        "seeds": "2",
        "configuration": "model=b",
        "val/accuracy %": "94.50 ± 0.71",
        "size": "1,234",
    }
    assert [row["rank"] for row in rows] == ["1", "2"]
    assert "seeds" not in results.leaderboard(make_study(*STEADY[:1]))[0]


def test_metrics_are_formatted_with_their_deviation_and_accuracies_in_percent() -> None:
    assert results.format_metric("val/accuracy", [0.95, 0.94]) == "94.50 ± 0.71"
    assert results.format_metric("val/loss", [0.25]) == "0.2500"
