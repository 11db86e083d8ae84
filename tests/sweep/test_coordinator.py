"""The coordinator in one process, with a real database."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import event, insert

from mnist_sweep.common.processes import process_identity
from mnist_sweep.sweep import optuna_internals, samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.config import SweepConfig
from mnist_sweep.sweep.coordinator import Coordinator
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.space import parse
from mnist_sweep.sweep.worker import Result

HERE = process_identity()


def make_coordinator(folder: Path, *, n_trials: int = 20_000, **settings: Any) -> Coordinator:
    """A coordinator of a search in three parameters, by random search unless `settings` say."""
    sampler = {"_target_": "optuna.samplers.RandomSampler"}
    chosen = OmegaConf.structured(SweepConfig(seed=0, sampler=sampler))
    chosen = OmegaConf.merge(chosen, {"name": "s", **settings})
    space = parse(chosen, ["a=interval(0,1)", "b=interval(0,1)", "c=choice(1,2)"])
    url = storage.storage_url(None, str(folder))
    study = storage.create_study(
        url,
        chosen.grace_s,
        "s",
        ["maximize"],
        sampler=samplers.make_sampler(chosen),
        pruner=samplers.make_pruner(chosen),
    )
    plan = Plan(
        invocation="i",
        failed_before=frozenset(),
        study_name="s",
        storage_url=url,
        space=space,
        n_trials=n_trials,
        grid=None,
        metrics=["y"],
        settings=chosen,
        directory=folder,
        driver=HERE,
        tags={},
    )
    return Coordinator(study, plan, OmegaConf.create())


def run_trial(coordinator: Coordinator) -> None:
    assignment = coordinator.next(HERE)
    assert assignment is not None
    for epoch in (1, 2, 3):
        coordinator.report(assignment.number, epoch, 0.5, final=epoch == 3)
    coordinator.tell(assignment.number, Result(values=[0.5]))


@contextmanager
def counted_statements(study: optuna.Study) -> Iterator[list[str]]:
    engine, statements = optuna_internals.backend(study).engine, []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def add_trials(study: optuna.Study, n: int, state: TrialState) -> None:
    """Insert trials in bulk: Optuna's own way takes 10 ms for each."""
    first, backend = len(study.get_trials(deepcopy=False)), optuna_internals.backend(study)
    common = {"study_id": study._study_id, "state": state, "datetime_start": datetime.now()}
    with backend.engine.begin() as connection:
        rows = [{"number": first + i, **common} for i in range(n)]
        connection.execute(insert(models.TrialModel), rows)


@pytest.mark.parametrize(
    ("n_finished", "n_running"), [(0, 0), (10_000, 1_000)], ids=["small", "large"]
)
def test_trial_takes_at_most_70_statements(tmp_path: Path, n_finished: int, n_running: int) -> None:
    """Three parameters, three reports, random search without a pruner, with heartbeats."""
    coordinator = make_coordinator(tmp_path)
    if n_finished:
        add_trials(coordinator.study, n_finished, TrialState.FAIL)
        add_trials(coordinator.study, n_running, TrialState.RUNNING)
    run_trial(coordinator)
    with counted_statements(coordinator.study) as statements:
        for _ in range(3):
            run_trial(coordinator)
    assert len(statements) <= 3 * 70
    print(len(statements) / 3)
