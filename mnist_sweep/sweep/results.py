"""What came out of a study: configurations over their seeds, which one wins, what to try next."""

import json
import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.common.errors import without_password
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.study import trials

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


def format_metric(metric: str, values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation: accuracies in percent."""
    if not values:
        return ""
    factor, digits = (100, 2) if metric.endswith("accuracy") else (1, 4)
    mean = f"{factor * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {factor * statistics.stdev(values):.{digits}f}"


def _without_seed(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}


def assignments(params: Mapping[str, Any]) -> str:
    """For the eye; four digits do not name a point exactly."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def shorten(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
