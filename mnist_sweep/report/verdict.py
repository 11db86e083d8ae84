"""Which configuration of a sweep is best, whether its lead is more than noise, and what to try next."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from mnist_sweep.analysis import metrics
from mnist_sweep.sweep.results import About, Configuration, format_metric, short

EDGE = 0.05  # share of an interval's width that counts as its edge
OVERFITTING_GAP = 0.01  # training accuracy minus validation accuracy

# {trial number: whether it predicts each validation image correctly, [N_val]}
Correct = Mapping[int, NDArray[np.bool_]]


def verdict(configurations: Sequence[Configuration], about: About, correct: Correct) -> list[str]:
    """Say in sentences which configuration is best, and whether its lead may be noise.

    Args:
        configurations: best first.
        correct: trials whose predictions are known.
    """
    if not configurations:
        return ["No trial completed."]
    metric, first = about.metrics[0], configurations[0]
    score = _with_unit(first, metric)
    if len(about.metrics) > 1:
        return [
            f"{first.name} has the best {metric}: {score}.",
            f"The chart of the Pareto front shows its trade-off with {' and '.join(about.metrics[1:])}.",
        ]
    if len(configurations) == 1:
        return [f"The only configuration ({first.name}) has {metric} {score}."]
    second = configurations[1]
    if metric.endswith("accuracy"):
        lead = f"{100 * abs(first.score - second.score):.2g} percentage points"
    else:
        lead = f"{abs(first.score - second.score):.2g}"
    other = f"{second.name} ({format_metric(metric, second.scores)})"
    sentences = [
        f"{first.name} has the best {metric}: {score}.",
        f"Its lead over {other} is {lead}. {_difference(first, second, metric, correct)}",
    ]
    if metric.startswith("val/"):
        sentences.append(
            f"Choosing the best of {len(configurations)} configurations makes its {metric} slightly "
            "optimistic. The choice does not affect the test accuracy."
        )
    return sentences


def _with_unit(configuration: Configuration, metric: str) -> str:
    unit = " %" if metric.endswith("accuracy") else ""
    n = len(configuration.scores)
    seeds = f" over {n} seeds" if n > 1 else ""
    return f"{format_metric(metric, configuration.scores)}{unit}{seeds}"


def _difference(first: Configuration, second: Configuration, metric: str, correct: Correct) -> str:
    """Say whether the lead may be noise.

    Only a test over seeds says something about configurations. A test on the validation images
    compares two trained models, and with other seeds the second configuration may have the better
    one.
    """
    unknown = "It is unknown whether this is noise"
    n_seeds = [len(each.scores) for each in (first, second)]
    if min(n_seeds) > 1:
        if max(map(statistics.pstdev, (first.scores, second.scores))) == 0:
            return f"{unknown}: the seeds make no difference."
        from scipy.stats import ttest_ind

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns about nearly equal scores
            p = float(ttest_ind(first.scores, second.scores, equal_var=False).pvalue)
        extent = "is more than noise" if p < metrics.SIGNIFICANCE_LEVEL else "may be noise"
        return (
            f"This {extent} (Welch's t-test over {n_seeds[0]} and {n_seeds[1]} seeds, p = {p:.2g})."
        )
    if metric != "val/accuracy" or max(n_seeds) > 1:
        return f"{unknown}: a test needs several seeds of both."
    one, other = (correct.get(each.trials[0].number) for each in (first, second))
    if one is None or other is None or one.shape != other.shape:
        return f"{unknown}: there is one seed, and no predictions of the same validation images."
    p = metrics.mcnemar(one, other)
    extent = "differ" if p < metrics.SIGNIFICANCE_LEVEL else "may be equally accurate"
    return (
        f"These two trained models {extent} (McNemar's test on {len(one):,} validation images, "
        f"p = {p:.2g}). To compare the configurations, train several seeds of each."
    )


class Step(NamedTuple):
    """Something to try next."""

    reason: str
    command: str


def next_steps(configurations: Sequence[Configuration], about: About) -> list[Step]:
    """Suggest what to try next. `configurations` are best first.

    Only this project's command has the settings that the suggestions name.
    """
    if not configurations or "sweep" not in about.own_keys:
        return []
    best = configurations[0]
    steps: list[Step] = []

    def suggest(reason: str, *overrides: str, multirun: bool = False) -> None:
        steps.append(Step(reason, about.command(best.params, *overrides, multirun=multirun)))

    if len(best.scores) == 1:
        suggest(
            "The result rests on one seed. Train the best configuration with three, on the same "
            "validation images.",
            *("seed=0,1,2", "data.split_seed=0"),
            multirun=True,
        )
    for name, value in best.params.items():
        if wider := _wider_interval(best.trials[0].distributions[name], value):
            suggest(
                f"{name}={short(value)} is at the edge of the searched interval. Search beyond it.",
                *(f"{name}={wider}", "search=tpe", "space=none"),
                multirun=True,
            )
    last, best_epoch = best.trials[0].last_step, best.summaries("best_epoch")
    if last and best_epoch and best_epoch[0] == last:
        suggest(
            f"The best run still improved in its last epoch ({last}). Train longer.",
            f"trainer.max_epochs={2 * last}",
        )
    train, val = best.summaries("best/train/accuracy"), best.summaries("best/val/accuracy")
    if train and val and train[0] - val[0] > OVERFITTING_GAP:
        gap = f"{100 * (train[0] - val[0]):.1f} points"
        suggest(
            f"The best run's training accuracy is {gap} above its validation accuracy. "
            "Augmentation may help.",
            "data.augment=affine",
        )
    return steps


def _wider_interval(distribution: Any, value: Any) -> str | None:
    """Return an interval around `value` if that is at the edge of its distribution, else None."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return None
    low, high = distribution.low, distribution.high
    if distribution.log:
        position = math.log(value / low) / math.log(high / low)  # 0..1
        at_an_edge = not EDGE <= position <= 1 - EDGE
        return f"tag(log,interval({value / 10:.4g},{value * 10:.4g}))" if at_an_edge else None
    # never beyond the lower edge, which may be a hard limit: a dropout cannot be negative
    half = (high - low) / 2
    at_upper_edge = value > high - 2 * EDGE * half
    return f"interval({value - half:.4g},{value + half:.4g})" if at_upper_edge else None
