"""The private names of Optuna that the engine needs, in one place."""

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, cached_property
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import func, or_, select, text, update
from sqlalchemy.orm import Session

# the methods of an RDBStorage by which Optuna touches the database, besides set_trial_state_values
STORAGE_CALLS = (
    *("create_new_study", "get_study_id_from_name", "get_study_name_from_id", "get_all_studies"),
    *("get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("set_study_user_attr", "set_study_system_attr"),
    *("_create_new_trial", "_get_trials", "get_trial", "_get_best_trial_id"),
    *("get_trial_id_from_study_id_trial_number", "_set_trial_param"),
    *("set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("record_heartbeat", "_get_stale_trial_ids"),
)

# System attributes of a trial begin with this if a pruner of Optuna sets them.
OF_PRUNERS = "completed_rung_"
OF_STUDY = "study:"  # with this if they stand for attributes of the study


class PlacedStorage:
    """The storage of a study as the sampler or the pruner sees it while it works for one trial.

    It reads the trials once. What the sampler writes to the study is kept with the trial. If the trial
    is replaced, the next attempt does not find what the sampler wrote for this one.
    """

    def __init__(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        arrange: Callable[[list[FrozenTrial]], list[FrozenTrial]],
    ) -> None:
        self._storage, self._study_id = study._storage, study._study_id
        self._trial_id, self._arrange = trial._trial_id, arrange
        self._written: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    @cached_property
    def trials(self) -> list[FrozenTrial]:
        return self._arrange(self._storage.get_all_trials(self._study_id, deepcopy=False))

    @cached_property
    def number(self) -> int:
        """The place of the trial."""
        latest_first = reversed(self.trials)
        return next(t.number for t in latest_first if t._trial_id == self._trial_id)

    def get_study_id_from_name(self, _name: str) -> int:
        return self._study_id

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = [t for t in self.trials if states is None or t.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        attributes = dict(self._storage.get_study_system_attrs(study_id))
        for trial in self.trials:
            for key, value in trial.system_attrs.items():
                if key.startswith(OF_STUDY):
                    attributes[key.removeprefix(OF_STUDY)] = value
        return attributes | self._written

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._written[key] = value
        self._storage.set_trial_system_attr(self._trial_id, f"{OF_STUDY}{key}", value)


class PlacedTrial(FrozenTrial):
    """A trial whose number is its place. The place is looked up when it is needed."""

    def __init__(self, trial: FrozenTrial, storage: PlacedStorage) -> None:
        self.__dict__.update(vars(trial), _placed_storage=storage)

    @property  # type: ignore[misc]
    def number(self) -> int:
        return self._placed_storage.number  # type: ignore[attr-defined, no-any-return]


def placed_study(
    study: optuna.Study,
    trial: FrozenTrial,
    name: str,
    arrange: Callable[[list[FrozenTrial]], list[FrozenTrial]],
    *,
    sampler: BaseSampler,
    pruner: BasePruner,
) -> optuna.Study:
    """A view of a study for the sampler or the pruner of one trial, under a name of its own.

    Args:
        arrange: makes the trials of the view of all trials of the study.
    """
    storage = cast(BaseStorage, PlacedStorage(study, trial, arrange))
    return optuna.Study(name, storage, sampler=sampler, pruner=pruner)


def placed_trial(view: optuna.Study, trial: FrozenTrial) -> FrozenTrial:
    """The trial as a view of the study shows it, for which the view was made."""
    return PlacedTrial(trial, cast(PlacedStorage, view._storage))


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


@contextmanager
def locked(storage: RDBStorage, trial_id: int) -> Iterator[tuple[Session, models.TrialModel]]:
    """Lock a trial for a transaction, which the block commits."""
    with Session(storage.engine) as session:
        if storage.engine.dialect.name == "sqlite":  # it ignores SELECT ... FOR UPDATE
            session.execute(text("BEGIN IMMEDIATE"))
        yield session, models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)


def claim(storage: RDBStorage, trial_id: int, attributes: Mapping[str, Any]) -> bool:
    """Make a queued trial RUNNING, with its first heartbeat; False if another process was faster."""
    with locked(storage, trial_id) as (session, trial):
        if trial.state != TrialState.WAITING:
            # a repeated call: the answer to the first one may have been lost with the connection
            recorded = {row.key: json.loads(row.value_json) for row in trial.user_attributes}
            is_running = trial.state == TrialState.RUNNING
            return bool(is_running and attributes.items() <= recorded.items())
        _set_user_attributes(storage, session, trial_id, attributes)
        add_heartbeat(session, trial_id)
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        session.commit()
    return True


def replace(
    storage: RDBStorage,
    study_id: int,
    trial_id: int,
    attributes: Mapping[str, Any],
    successor: FrozenTrial,
) -> bool:
    """FAIL a trial and queue its successor in one transaction; False if the trial was finished."""
    with locked(storage, trial_id) as (session, trial):
        if trial.state.is_finished():
            return False
        _set_user_attributes(storage, session, trial_id, attributes)
        trial.state, trial.datetime_complete = TrialState.FAIL, datetime.now()
        # other processes that number a new trial wait for this row
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        storage._get_prepared_new_trial(study_id, successor, session)
        session.commit()
    return True


def _set_user_attributes(
    storage: RDBStorage, session: Session, trial_id: int, attributes: Mapping[str, Any]
) -> None:
    for key, value in attributes.items():
        storage._set_trial_attr_without_commit(
            session, models.TrialUserAttributeModel, trial_id, key, value
        )


def add_heartbeat(session: Session, trial_id: int) -> None:
    """Add the first heartbeat of a trial. Without one it would never count as dead."""
    session.add(models.TrialHeartbeatModel(trial_id=trial_id))


def begin(study: optuna.Study, queued: Iterable[FrozenTrial], attributes: Mapping[str, Any]) -> int:
    """Begin the first of the queued trials that no other process begins, or else a new trial.

    Unlike `Study.ask` it sets user attributes in the same transaction, so that no RUNNING trial is
    without them.

    Returns:
        The id of the trial.
    """
    study._thread_local.cached_all_trials = None
    for trial in queued:
        if backend(study).claim(trial._trial_id, attributes):
            return trial._trial_id
    new = create_trial(state=TrialState.RUNNING, user_attrs=dict(attributes))
    return study._storage.create_new_trial(study._study_id, new)


def replace_trial(
    study: optuna.Study,
    trial: FrozenTrial,
    attributes: Mapping[str, Any],
    successor: FrozenTrial,
) -> bool:
    """FAIL a trial and queue its successor at once; False if the trial was finished."""
    ids = study._study_id, trial._trial_id
    return bool(backend(study).replace(*ids, attributes, successor))


def of_sampler(trial: FrozenTrial) -> dict[str, Any]:
    """What the sampler recorded in a trial."""
    return {k: v for k, v in trial.system_attrs.items() if not k.startswith(OF_PRUNERS)}


def copy_pruner_records(source: FrozenTrial, trial: Trial) -> None:
    """Copy what the pruner recorded in one trial to another one."""
    for key, value in source.system_attrs.items():
        if key.startswith(OF_PRUNERS):
            trial.study._storage.set_trial_system_attr(trial._trial_id, key, value)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Draw a parameter from a distribution that is given as an object."""
    return trial._suggest(name, distribution)


def frozen(trial: Trial) -> FrozenTrial:
    """The trial's present state in the database."""
    return read_trial(trial.study, trial._trial_id)


def read_trial(study: optuna.Study, trial_id: int) -> FrozenTrial:
    return study._storage.get_trial(trial_id)


def backend(study: optuna.Study) -> Any:
    """The storage below Optuna's cache."""
    return getattr(study._storage, "_backend", study._storage)


def record_heartbeats(study: optuna.Study, trials: Iterable[Trial]) -> None:
    """Record the heartbeats of trials that have had one, in one statement."""
    ids = [trial._trial_id for trial in trials]
    if ids:
        of_trials = models.TrialHeartbeatModel.trial_id.in_(ids)
        beats = update(models.TrialHeartbeatModel).where(of_trials).values(heartbeat=func.now())

        def beat() -> None:
            with backend(study).engine.begin() as connection:
                connection.execute(beats)

        backend(study).patience.call(beat)


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
