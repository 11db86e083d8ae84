"""The private names of Optuna that the engine needs, in one place."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw a parameter from a distribution that is given as an object."""
    return trial._suggest(name, distribution)


def frozen(trial: Trial) -> FrozenTrial:
    """The trial's present state in the database."""
    return trial.study._storage.get_trial(trial._trial_id)


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials; under Hyperband, `study.trials` inside a sampler shows those of one bracket."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def record_heartbeat(trial: Trial) -> None:
    """Record a heartbeat; Optuna itself does so only in `Study.optimize`."""
    trial.study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]


def stale_trial_ids(study: optuna.Study) -> set[int]:
    """Ids of the RUNNING trials without a heartbeat for the grace period."""
    ids = study._storage._get_stale_trial_ids(study._study_id)  # type: ignore[attr-defined]
    return set(ids)


def trial_id(trial: FrozenTrial) -> int:
    return trial._trial_id


def set_trial_attribute(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, key, value)


def set_state(
    study: optuna.Study,
    trial: FrozenTrial,
    state: TrialState,
    values: Sequence[float] | None = None,
) -> bool:
    """Set the final state; False if another process did so first."""
    return study._storage.set_trial_state_values(trial._trial_id, state, values)
