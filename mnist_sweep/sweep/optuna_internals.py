"""The private names of Optuna that the engine needs, in one place."""

import json
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from functools import cache
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

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


def read_trials(
    storage: RDBStorage,
    study_id: int,
    states: Container[TrialState] | None,
    included_trial_ids: set[int],
    trial_id_greater_than: int,
) -> list[FrozenTrial]:
    """Read trials as `RDBStorage._get_trials` does, in six statements whatever their number.

    Optuna's own needs a statement for the attributes of every 500 trials, and makes an object of every
    row. A look at 1,000 RUNNING trials took 2.4 s.

    Raises:
        KeyError: there is no such study.
    """
    trial = models.TrialModel
    conditions = [trial.study_id == study_id]
    if states is not None:
        conditions.append(trial.state.in_(states))  # type: ignore[arg-type]
    if trial_id_greater_than > -1:
        known = [i for i in included_trial_ids if i <= trial_id_greater_than]
        conditions.append(or_(trial.trial_id > trial_id_greater_than, trial.trial_id.in_(known)))
    ids = select(trial.trial_id).where(*conditions)
    with Session(storage.engine) as session:

        def read(model: Any, *columns: Any) -> dict[int, list[Any]]:
            rows = defaultdict(list)
            query = select(model.trial_id, *columns).where(model.trial_id.in_(ids))
            for trial_id, *values in session.execute(query):
                rows[trial_id].append(values)
            return rows

        found: Sequence[Any] = session.scalars(
            select(trial).where(*conditions).order_by(trial.trial_id)
        ).all()
        if not found:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            return []
        param = models.TrialParamModel
        params = read(
            param, param.param_id, param.param_name, param.param_value, param.distribution_json
        )
        value = models.TrialValueModel
        values = read(value, value.objective, value.value, value.value_type)
        step = models.TrialIntermediateValueModel
        steps = read(step, step.step, step.intermediate_value, step.intermediate_value_type)
        user, system = (
            read(model, model.key, model.value_json)
            for model in (models.TrialUserAttributeModel, models.TrialSystemAttributeModel)
        )
        return [
            FrozenTrial(
                number=row.number,
                state=row.state,
                value=None,
                values=[value.stored_repr_to_value(*x) for _, *x in sorted(values[i])] or None,
                datetime_start=row.datetime_start,
                datetime_complete=row.datetime_complete,
                params={
                    name: _distribution(text).to_external_repr(x)
                    for _, name, x, text in sorted(params[i])
                },
                distributions={name: _distribution(text) for _, name, _, text in sorted(params[i])},
                user_attrs={key: json.loads(text) for key, text in user[i]},
                system_attrs={key: json.loads(text) for key, text in system[i]},
                intermediate_values={
                    n: step.stored_repr_to_intermediate_value(*x) for n, *x in steps[i]
                },
                trial_id=i,
            )
            for row in found
            for i in [int(row.trial_id)]
        ]


@cache
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


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
        of_trials = models.TrialHeartbeatModel.trial_id.in_(ids)
        with backend(study).engine.begin() as connection:
            beats = update(models.TrialHeartbeatModel).where(of_trials)
            connection.execute(beats.values(heartbeat=func.now()))


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
