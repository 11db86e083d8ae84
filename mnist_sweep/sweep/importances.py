"""Importances of the parameters, over complete and pruned trials alike."""

import logging
import math
import random
from typing import NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnist_sweep.sweep.study import DONE, get_trials

log = logging.getLogger(__name__)

MAX_TRIALS = 300  # a sample of so many is enough; 1,000 would take fANOVA four seconds
MIN_TRIALS = 20  # fewer say too little: with 6 trials the order of the parameters is chance


class Importances(NamedTuple):
    shares: dict[str, float]  # of the variance, by parameter, the largest first; they sum to 1
    n_trials: int
    step: int | None  # all trials are compared at this step (epoch); None: by their final values

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        at = f" at epoch {self.step}" if self.step else ""
        return f"{shares} ({self.n_trials} trials{at})"


def importances(study: optuna.Study) -> Importances | None:
    """Importances by fANOVA (Hutter et al. 2014); None if the trials are too few or all alike.

    Pruned trials count too. Because they have no final value, all trials are compared at the last
    step that each of them reported. Optuna's default evaluator, PED-ANOVA, asks what tells the best
    trials from good ones. A parameter that all good trials share has no importance there.
    """
    trials = get_trials(study, *DONE)
    step = None
    if all(trial.last_step is not None for trial in trials):
        step = min((trial.last_step or 0 for trial in trials), default=None)
    else:
        trials = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    if len(trials) > MAX_TRIALS:
        trials = random.Random(0).sample(trials, MAX_TRIALS)
    values = [(trial, _value(trial, step)) for trial in trials]
    comparable = optuna.create_study(direction=StudyDirection.MINIMIZE)
    for trial, value in values:
        if value is not None and math.isfinite(value):
            comparable.add_trial(
                create_trial(params=trial.params, distributions=trial.distributions, value=value)
            )
    n_trials = len(comparable.trials)
    if n_trials < MIN_TRIALS:
        return None
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(comparable, evaluator=evaluator)
        return Importances(shares, n_trials, step)
    except (ValueError, RuntimeError, ImportError) as error:  # e.g. no parameter of all trials
        log.debug("importances: %s", error)
        return None


def _value(trial: FrozenTrial, step: int | None) -> float | None:
    return trial.values[0] if step is None else trial.intermediate_values.get(step)
