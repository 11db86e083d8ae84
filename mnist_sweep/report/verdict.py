"""Which configuration of a sweep wins, whether that is more than noise, and what to try next."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from mnist_sweep.analysis import metrics
from mnist_sweep.sweep.results import About, Configuration, format_metric, short

AT_THE_EDGE = 0.05  # of the width of an interval
OVERFIT = 0.01  # accuracy of training above that of validation

# Whether a model is right on each validation image [N_val], for the trials of which that is known.
Right = Mapping[int, NDArray[Any]]


def verdict(found: Sequence[Configuration], about: About, right: Right) -> list[str]:
    """Which configuration wins, by how much, and whether that is more than noise; in sentences."""
    if not found:
        return ["No trial completed."]
    metric, first = about.metrics[0], found[0]
    seeds = f", {len(first.scores)} seeds" if len(first.scores) > 1 else ""
    percent = " %" if metric.endswith("accuracy") else ""
    lines = [f"{first.name} wins: {metric} {format_metric(metric, first.scores)}{percent}{seeds}."]
    if len(found) == 1:
        return lines
    if len(about.metrics) > 1:
        return [
            f"{first.name} has the best {metric}: {format_metric(metric, first.scores)}{percent}{seeds}.",
            f"It pays in {' and '.join(about.metrics[1:])}: the chart of the Pareto front shows what "
            "the others give up for less.",
        ]
    second = found[1]
    factor, unit = (100, " points") if metric.endswith("accuracy") else (1, "")
    lead = f"{factor * abs(first.score - second.score):.2g}{unit}"
    how, p = _test(first, second, metric, right)
    if p is None:
        says = f"whether that is more than noise cannot be said: {how}"
    elif p < metrics.SIGNIFICANCE_LEVEL:
        says = f"more than noise ({how}, p = {p:.2g})"
    else:
        says = f"that may be noise ({how}, p = {p:.2g})"
    caution = (
        f"The best of {len(found)} looks better than it is: chosen on these very images, its figure "
        "is a little too good. The test accuracy is not."
    )
    return [
        *lines,
        f"It is {lead} ahead of the next, {second.name} ({format_metric(metric, second.scores)}); {says}.",
        *([caution] if metric.startswith("val/") else []),
    ]


def _test(
    first: Configuration, second: Configuration, metric: str, right: Right
) -> tuple[str, float | None]:
    """The test that fits and its p-value: over the seeds, or else over the validation images."""
    if min(len(first.scores), len(second.scores)) > 1:
        if max(map(statistics.pstdev, (first.scores, second.scores))) == 0:
            return "seeds that make no difference", None
        from scipy.stats import ttest_ind

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of seeds that all but agree
            p = ttest_ind(first.scores, second.scores, equal_var=False).pvalue
        return f"Welch's t-test over {len(first.scores)} and {len(second.scores)} seeds", float(p)
    one, other = (right.get(c.trials[0].number) for c in (first, second))
    if metric != "val/accuracy" or max(len(first.scores), len(second.scores)) > 1:
        return "several seeds of both would tell", None
    if one is None or other is None or one.shape != other.shape:
        return "one seed, and no predictions of the same validation images", None
    return f"McNemar's test on {len(one):,} validation images, one seed", metrics.mcnemar(
        one, other
    )


def next_steps(
    study: optuna.Study, found: Sequence[Configuration], about: About
) -> list[list[str]]:
    """[why, command] of what is worth trying."""
    if not found:
        return []
    best, steps = found[0], []
    if len(best.scores) == 1:
        why = "One seed is no proof: train the best with three, on the same validation images."
        seeds = ("seed=0,1,2", "data.split_seed=0")
        steps.append([why, about.command(best.params, *seeds, multirun=True)])
    for name, value in best.params.items():
        wider = _wider(best.trials[0].distributions[name], value)
        if wider:
            why = f"{name}={short(value)} lies at the edge of what was searched: look beyond."
            override = f"{name}={wider}"
            search = ("search=tpe", "space=none")
            steps.append([why, about.command(best.params, override, *search, multirun=True)])
    last, best_epoch = best.trials[0].last_step, best.summaries("best_epoch")
    if last and best_epoch and best_epoch[0] == last:
        why = f"The best was still improving in its last epoch, {last}: train longer."
        steps.append([why, about.command(best.params, f"trainer.max_epochs={2 * last}")])
    train, val = best.summaries("best/train/accuracy"), best.summaries("best/val/accuracy")
    if train and val and train[0] - val[0] > OVERFIT:
        gap = f"{100 * (train[0] - val[0]):.1f} points better in training than in validation"
        why = f"The best is {gap}: augmentation may help."
        steps.append([why, about.command(best.params, "data.augment=affine")])
    return steps


def _wider(distribution: Any, value: Any) -> str | None:
    """An interval around the end of this one at which `value` lies."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return None
    low, high = distribution.low, distribution.high
    if distribution.log:
        share = math.log(value / low) / math.log(high / low)
        at_an_end = not AT_THE_EDGE <= share <= 1 - AT_THE_EDGE
        return f"tag(log,interval({value / 10:.4g},{value * 10:.4g}))" if at_an_end else None
    # not below the lower end: there may be nothing, as with a dropout of less than 0
    half = (high - low) / 2
    at_the_end = value > high - 2 * AT_THE_EDGE * half
    return f"interval({value - half:.4g},{value + half:.4g})" if at_the_end else None
