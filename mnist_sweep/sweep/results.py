"""Results of a study: configurations averaged over their seeds, the leaderboard, printed commands."""

import json
import shlex
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.common.configs import is_under
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.program import program
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.study import get_trials

ABOUT = "about"  # user attribute of a study: an About
COMPARE = "compare the runs"  # label of the link to the runs in the tracking UI


@dataclass(frozen=True)
class Configuration:
    """Complete trials that differ only in their seed, the earliest first."""

    params: dict[str, Any]
    trials: list[FrozenTrial]

    @property
    def scores(self) -> list[float]:
        """Each trial's first objective."""
        return [trial.values[0] for trial in self.trials]

    @property
    def score(self) -> float:
        return statistics.mean(self.scores)

    def summaries(self, metric: str) -> list[float]:
        """A metric of the runs' summaries, from the runs that have it."""
        summaries = [trial.user_attrs.get(storage.SUMMARY, {}) for trial in self.trials]
        return [summary[metric] for summary in summaries if metric in summary]

    @property
    def name(self) -> str:
        return assignments(self.params) or "defaults"


def ranked(study: optuna.Study) -> list[Configuration]:
    """All configurations with a complete trial, ordered by the mean of the first objective."""
    groups: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in get_trials(study, TrialState.COMPLETE):
        groups[json.dumps(_without_seed(trial), sort_keys=True)].append(trial)
    configurations = [Configuration(_without_seed(group[0]), group) for group in groups.values()]
    return sorted(configurations, key=lambda c: c.score, reverse=maximizes(study))


def count_states(study: optuna.Study) -> dict[str, int]:
    """Number of trials in each final state: complete, pruned and fail."""
    trials = get_trials(study)
    return {s.name.lower(): storage.count(trials, s) for s in TrialState if s.is_finished()}


def has_objective(study: optuna.Study) -> bool:
    """Whether a complete trial has a value to compare; the task of a grid may return nothing."""
    complete = get_trials(study, TrialState.COMPLETE)
    return any(storage.NO_VALUE not in trial.user_attrs for trial in complete)


def maximizes(study: optuna.Study) -> bool:
    return study.directions[0] is StudyDirection.MAXIMIZE


@dataclass(frozen=True)
class About:
    """How a sweep was started: what a report needs besides the trials."""

    metrics: list[str]  # a name for each objective
    fixed: list[str]  # overrides of every trial
    directory: str
    link: str = ""  # to the runs in the tracking UI
    columns: dict[str, str] = field(default_factory=dict)  # leaderboard: metric -> heading
    # what configures the sweep, not its trials; the default is that of earlier versions
    own_keys: list[str] = field(default_factory=lambda: ["sweep", "search", "pruner", "space"])
    flags: list[str] = field(default_factory=list)  # which name the configuration
    program: list[str] = field(default_factory=program)

    def save(self, study: optuna.Study) -> None:
        study.set_user_attr(ABOUT, vars(self))

    @classmethod
    def of(cls, study: optuna.Study) -> "About":
        """Read it from the study, except the program: users paste the printed commands.

        Raises:
            UserError: the study has none, or a damaged one.
        """
        try:
            return cls(**{**study.user_attrs[ABOUT], "program": program()})
        except (KeyError, TypeError) as error:
            raise UserError(
                f"mnist_sweep did not create the study {study.study_name}, or it is damaged"
            ) from error

    def command(self, params: Mapping[str, Any], *more: str, multirun: bool = False) -> str:
        """The command that trains `params` exactly; the overrides `more` win over both."""
        changed = {override.partition("=")[0] for override in more}
        overrides = [*self.fixed, *(f"{name}={value}" for name, value in params.items())]
        kept = [
            mask_url(override)  # studies of earlier versions may contain secrets
            for override in overrides
            if (key := override.partition("=")[0]) not in changed
            and not is_under(key, self.own_keys)
        ]
        flag = ["-m"] if multirun else []
        return shlex.join([*self.program, *self.flags, *flag, *kept, *more])


def best_trials(study: optuna.Study, n: int) -> list[FrozenTrial]:
    """The best `n` trials, with several objectives those of the Pareto front.

    The first trial of the best configuration is always one of them.
    """
    if len(study.directions) > 1:
        best = study.best_trials
    else:
        complete = get_trials(study, TrialState.COMPLETE)
        best = sorted(complete, key=lambda t: t.value or 0.0, reverse=maximizes(study))[:n]
    return [*best, *(configuration.trials[0] for configuration in ranked(study)[:1])]


def leaderboard(study: optuna.Study) -> list[dict[str, str]]:
    """One row of {heading: text} for each configuration with a complete trial, the best first.

    The columns are the rank, the first trial, the number of seeds if there are several, the
    configuration, each objective, and the metrics in `About.columns`. A value is the mean over the
    seeds ± its standard deviation.
    """
    about, configurations = About.of(study), ranked(study)
    several_seeds = any(len(each.trials) > 1 for each in configurations)
    rows = []
    for rank, each in enumerate(configurations, start=1):
        row = {"rank": str(rank), "trial": str(each.trials[0].number)}
        if several_seeds:
            row["seeds"] = str(len(each.trials))
        row["configuration"] = each.name
        for i, metric in enumerate(about.metrics):
            values = [trial.values[i] for trial in each.trials]
            row[heading(metric)] = format_metric(metric, values)
        for metric, title in about.columns.items():
            row.setdefault(title, format_metric(metric, each.summaries(metric)))
        rows.append(row)
    return rows


def heading(metric: str) -> str:
    """The metric's name with its unit."""
    return f"{metric} %" if metric.endswith("accuracy") else metric


def format_metric(metric: str, values: Sequence[float]) -> str:
    """The mean, and of several values ± the standard deviation; accuracies in percent."""
    if not values:
        return ""
    mean, factor = statistics.mean(values), 1
    if metric.endswith("accuracy"):
        factor, pattern = 100, ".2f"
    elif all(float(value).is_integer() for value in values) or abs(mean) >= 1000:
        pattern = ",.0f"
    else:
        pattern = "#.4g"
    text = f"{factor * mean:{pattern}}"
    if len(values) == 1 or (deviation := statistics.stdev(values)) == 0:
        return text
    return f"{text} ± {factor * deviation:{pattern}}"


def assignments(params: Mapping[str, Any]) -> str:
    """Parameters for display; four digits do not name a point exactly."""
    return " ".join(f"{name}={short(value)}" for name, value in params.items())


def shorten(name: str, most: int = 60) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_seed(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in trial.params.items() if name != "seed"}
