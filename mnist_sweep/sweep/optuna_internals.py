"""The private names of Optuna that the engine needs, in one place."""

from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages._rdb.models import TrialHeartbeatModel
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import func

# the methods of an RDBStorage by which Optuna touches the database
STORAGE_CALLS = (
    *("create_new_study", "get_study_id_from_name", "get_study_name_from_id", "get_all_studies"),
    *("get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("set_study_user_attr", "set_study_system_attr"),
    *("_create_new_trial", "_get_trials", "get_trial", "_get_best_trial_id"),
    *("get_trial_id_from_study_id_trial_number", "_set_trial_param", "set_trial_state_values"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("record_heartbeat", "_get_stale_trial_ids"),
)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw a parameter from a distribution that is given as an object."""
    return trial._suggest(name, distribution)


def frozen(trial: Trial) -> FrozenTrial:
    """The trial's present state in the database."""
    return trial.study._storage.get_trial(trial._trial_id)


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials; under Hyperband, `study.trials` inside a sampler shows those of one bracket."""
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def backend(study: optuna.Study) -> Any:
    """The storage below Optuna's cache."""
    return getattr(study._storage, "_backend", study._storage)


def record_heartbeat(trial: Trial) -> None:
    """Record a heartbeat; Optuna itself does so only in `Study.optimize`."""
    trial.study._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]


def record_heartbeats(study: optuna.Study, trials: Iterable[Trial]) -> None:
    """Record the heartbeats of trials that have had one, in one statement."""
    ids = [trial._trial_id for trial in trials]
    if ids:
        with backend(study).scoped_session.begin() as session:
            beats = session.query(TrialHeartbeatModel).filter(TrialHeartbeatModel.trial_id.in_(ids))
            beats.update({"heartbeat": func.now()}, synchronize_session=False)


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
