"""What came out of a study: configurations over their seeds, which one wins, what to try next."""

import json
import math
import shlex
import statistics
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep import metrics
from mnist_sweep.errors import without_password
from mnist_sweep.sweep import storage
from mnist_sweep.sweep.storage import trials

ABOUT = "about"  # user attribute of a study: how it was asked for
AT_THE_EDGE = 0.05  # of the width of an interval
OVERFIT = 0.01  # accuracy of training above that of validation


@dataclass(frozen=True)
class Configuration:
    """Complete trials that differ in nothing but their seed, the earliest first."""

    params: dict[str, Any]
    trials: list[FrozenTrial]

    @property
    def scores(self) -> list[float]:
        """The first objective."""
        return [trial.values[0] for trial in self.trials]

    @property
    def score(self) -> float:
        return statistics.mean(self.scores)

    def summaries(self, key: str) -> list[float]:
        """A figure of the runs' summaries, of those that have it."""
        found = [trial.user_attrs.get(storage.SUMMARY, {}) for trial in self.trials]
        return [summary[key] for summary in found if key in summary]

    @property
    def name(self) -> str:
        return assignments(self.params) or "defaults"


def ranked(study: optuna.Study) -> list[Configuration]:
    """All configurations with a complete trial, the best mean of the first objective first."""
    groups: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in trials(study, TrialState.COMPLETE):
        groups[json.dumps(_without_seed(trial), sort_keys=True)].append(trial)
    found = [Configuration(_without_seed(group[0]), group) for group in groups.values()]
    return sorted(found, key=lambda c: c.score, reverse=maximizes(study))


def maximizes(study: optuna.Study) -> bool:
    return study.directions[0] is StudyDirection.MAXIMIZE


@dataclass(frozen=True)
class About:
    """How a study was asked for; what a report needs beside its trials."""

    metrics: list[str]  # a name for each objective
    fixed: list[str]  # overrides of every trial
    directory: str
    link: str = ""  # to its runs in MLflow's UI

    def save(self, study: optuna.Study) -> None:
        study.set_user_attr(ABOUT, vars(self))

    @classmethod
    def of(cls, study: optuna.Study) -> "About":
        return cls(**study.user_attrs[ABOUT])

    def command(self, params: Mapping[str, Any], *more: str, multirun: bool = False) -> str:
        """That trains `params`, exactly; `more` overrides both."""
        named = {o.partition("=")[0] for o in more}
        exact = [*self.fixed, *(f"{name}={value}" for name, value in params.items())]
        free = ("sweep.", "search=", "pruner=")
        kept = [o for o in exact if not o.startswith(free) and o.partition("=")[0] not in named]
        flag = ["-m"] if multirun else []
        shown = [without_password(argument) for argument in kept]  # of a page that is passed on
        return shlex.join(["python", "-m", "mnist_sweep", *flag, *shown, *more])


def told(metric: str, values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation: accuracies in percent."""
    if not values:
        return ""
    factor, digits = (100, 2) if metric.endswith("accuracy") else (1, 4)
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


# Whether a model is right on each validation image [N_val], for the trials of which that is known.
Right = Mapping[int, NDArray[Any]]


def verdict(found: Sequence[Configuration], about: About, right: Right) -> list[str]:
    """Which configuration wins, by how much, and whether that is more than noise; in sentences."""
    if not found:
        return ["No trial completed."]
    metric, first = about.metrics[0], found[0]
    seeds = f", {len(first.scores)} seeds" if len(first.scores) > 1 else ""
    percent = " %" if metric.endswith("accuracy") else ""
    lines = [f"{first.name} wins: {metric} {told(metric, first.scores)}{percent}{seeds}."]
    if len(found) == 1:
        return lines
    if len(about.metrics) > 1:
        return [
            f"{first.name} has the best {metric}: {told(metric, first.scores)}{percent}{seeds}.",
            f"It pays in {' and '.join(about.metrics[1:])}: the chart of the Pareto front shows what "
            "the others give up for less.",
        ]
    second = found[1]
    factor, unit = (100, " points") if metric.endswith("accuracy") else (1, "")
    lead = f"{factor * abs(first.score - second.score):.2g}{unit}"
    how, p = _test(first, second, metric, right)
    if p is None:
        says = f"whether that is more than noise cannot be said: {how}"
    elif p < metrics.NOISE:
        says = f"more than noise ({how}, p = {p:.2g})"
    else:
        says = f"that may be noise ({how}, p = {p:.2g})"
    caution = (
        f"The best of {len(found)} looks better than it is: chosen on these very images, its figure "
        "is a little too good. The test accuracy is not."
    )
    return [
        *lines,
        f"It is {lead} ahead of the next, {second.name} ({told(metric, second.scores)}); {says}.",
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


def _without_seed(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def assignments(params: Mapping[str, Any]) -> str:
    """For the eye; four digits do not name a point exactly."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def shorten(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
