"""The coordinator in one process, with a real database."""

import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import event, insert, text

from mnist_sweep.common.processes import process_identity
from mnist_sweep.sweep import optuna_internals, samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.coordinator import Channel, Coordinator, CoordinatorThread
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.space import Space, parse
from mnist_sweep.sweep.worker import Result
from tests.helpers.engine import states
from tests.helpers.settings import sweep_settings

HERE = process_identity()


def make_coordinator(
    folder: Path, *, n_trials: int = 20_000, url: str | None = None, **settings: Any
) -> Coordinator:
    """A coordinator of a search in three parameters, by random search unless `settings` say."""
    sampler = {"_target_": "optuna.samplers.RandomSampler"}
    chosen = sweep_settings(**{"sampler": sampler, "name": "s", **settings})
    space = parse(chosen, ["a=interval(0,1)", "b=interval(0,1)", "c=choice(1,2)"])
    url = storage.storage_url(url, str(folder))
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


def test_trials_are_read_as_optuna_reads_them(tmp_path: Path) -> None:
    coordinator = make_coordinator(tmp_path)
    study = coordinator.study
    for value in (0.5, math.inf, -math.inf):
        run_trial(coordinator)
        trial = study.ask({"d": IntDistribution(1, 9), "e": FloatDistribution(1e-3, 1, log=True)})
        trial.report(math.nan if value == 0.5 else value, 7)
        trial.report(value, 3)
        trial.set_user_attr("note", {"a": ["b", None]})
        study.tell(trial, value)
    study.ask()
    study.enqueue_trial({"a": 0.25, "c": 2}, user_attrs={"grid": "point"})
    own, optunas = (
        cls._get_trials(optuna_internals.backend(study), study._study_id, None, set(), -1)
        for cls in (storage.ExactStorage, RDBStorage)
    )
    assert repr(own) == repr(optunas)  # not ==, because of the NaN
    assert len(own) == 8
    finished = optuna_internals.backend(study)._get_trials(
        study._study_id, (TrialState.COMPLETE,), {1, 2, 8}, 3
    )
    assert [t.number for t in finished] == [0, 1, 3, 4, 5]


def test_two_coordinators_give_out_a_budget_exactly(tmp_path: Path) -> None:
    one, other = (make_coordinator(tmp_path, n_trials=5) for _ in range(2))
    given = []
    while not (one.is_over and other.is_over):
        assignments = [(c, c.next(HERE)) for c in (one, other)]
        for coordinator, assignment in assignments:
            if assignment is not None:
                given.append(assignment.number)
                coordinator.tell(assignment.number, Result(values=[0.5]))
    assert len(given) == 5
    done = [t for t in one.look() if t.state is TrialState.COMPLETE]
    assert [t.number for t in done] == sorted(given)


def test_result_of_a_trial_that_another_host_gave_up_is_dropped(tmp_path: Path) -> None:
    coordinator = make_coordinator(tmp_path)
    assignment = coordinator.next(HERE)
    assert assignment is not None
    (trial,) = coordinator.look()
    storage.retry(coordinator.study, trial, storage.STALE, coordinator.plan.settings)
    assert coordinator.report(assignment.number, 1, 0.5, final=False), "it should stop"
    coordinator.tell(assignment.number, Result(values=[0.5]))
    assert [t.state.name for t in coordinator.look()] == ["FAIL", "WAITING"]


ELSEWHERE = {**HERE, "host": "elsewhere"}


def let_heartbeats_age(study: optuna.Study, seconds: int) -> None:
    with optuna_internals.backend(study).engine.begin() as connection:
        past = text(
            f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds')"
        )
        connection.execute(past)


def test_silent_trial_is_reaped_only_after_a_grace_period_of_listening(tmp_path: Path) -> None:
    """While the database is away, nobody can beat."""
    other, coordinator = (make_coordinator(tmp_path, grace_s=2) for _ in range(2))
    other.next(ELSEWHERE)
    let_heartbeats_age(other.study, 100)
    coordinator.tick()
    assert states(coordinator.look()) == {"RUNNING": 1}
    for _ in range(3):
        time.sleep(0.8)
        coordinator.tick()
    assert states(coordinator.look()) == {"stale": 1, "WAITING": 1}


def test_silent_trial_is_not_reaped_right_after_an_outage(tmp_path: Path) -> None:
    other, coordinator = (make_coordinator(tmp_path, grace_s=2) for _ in range(2))
    other.next(ELSEWHERE)
    for _ in range(3):
        time.sleep(0.8)
        coordinator.tick()
        other.tick()
    with closing(sqlite3.connect(tmp_path / "optuna.db", check_same_thread=False)) as database:
        database.execute("BEGIN EXCLUSIVE")
        unlock = threading.Timer(4, database.rollback)
        unlock.start()
        coordinator.tick()
        unlock.join()
    assert states(coordinator.look()) == {"RUNNING": 1}
    other.tick()
    time.sleep(1)
    coordinator.tick()
    assert states(coordinator.look()) == {"RUNNING": 1}


def test_trial_that_nobody_received_is_queued_again_without_a_death(tmp_path: Path) -> None:
    thread = CoordinatorThread(make_coordinator(tmp_path))
    thread.start()
    answers = iter([True, False])  # the worker dies while it waits
    channel = Channel(thread, HERE, is_alive=lambda: next(answers), interrupt=int, end=int)
    assert channel.next() is None
    assert thread.close(10)
    replaced, queued = thread.coordinator.look()
    assert replaced.user_attrs["replaced"] == "interrupted"
    assert "deaths" not in queued.user_attrs


def test_trial_without_a_worker_is_queued_again_without_a_death(tmp_path: Path) -> None:
    coordinator = make_coordinator(tmp_path, grace_s=1)
    coordinator.study.ask()
    for _ in range(2):
        time.sleep(0.8)
        coordinator.tick()
    assert states(coordinator.look()) == {"interrupted": 1, "WAITING": 1}
    assert "deaths" not in coordinator.look()[1].user_attrs


def test_trial_that_was_taken_for_dead_while_it_was_given_out_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database was away between the first call and the next one."""
    coordinator, other = (make_coordinator(tmp_path) for _ in range(2))

    suggest = Space.suggest

    def take(space: Space, trial: optuna.Trial, config: DictConfig) -> dict[str, Any]:
        reaped = other.look()[trial.number]
        storage.requeue(other.study, reaped, storage.INTERRUPTED, other.plan.settings)
        return suggest(space, trial, config)

    with monkeypatch.context() as patched:
        patched.setattr(Space, "suggest", take)
        assert coordinator.next(HERE) is None
    assignment = coordinator.next(HERE)
    assert assignment is not None
    assert states(coordinator.look()) == {"interrupted": 1, "RUNNING": 1}


def test_trial_whose_beginning_was_not_confirmed_is_queued_again(tmp_path: Path) -> None:
    """The database's answer was lost, and the call was repeated: it began another trial."""
    coordinator = make_coordinator(tmp_path, n_trials=3)
    given = coordinator.next(HERE)
    assert given is not None
    owner = coordinator.look()[0].user_attrs[storage.WORKER]
    optuna_internals.begin(coordinator.study, [], {storage.WORKER: owner})
    coordinator.tick()
    assert states(coordinator.look()) == {"RUNNING": 1, "interrupted": 1, "WAITING": 1}
    assert "deaths" not in coordinator.look()[2].user_attrs


def test_progress_is_a_newer_checkpoint(tmp_path: Path) -> None:
    """It starts the count of deaths anew, and retries are unlimited while there is some."""
    tmp_path = tmp_path / "s"  # the directory of the sweep
    tmp_path.mkdir()
    coordinator = make_coordinator(tmp_path, retries=1, checkpoint="last")
    for number, deaths in enumerate([1, 0, 0, 1]):
        assert coordinator.next(HERE) is not None
        if deaths == 0:
            (tmp_path / str(number)).mkdir()
            saved = tmp_path / str(number) / "last"
            saved.touch()
            os.utime(saved, (number, number))
        coordinator.release(number, storage.STALE)
        queued = coordinator.look()[-1]
        assert queued.user_attrs["deaths"] == deaths
        assert queued.user_attrs.get("resume") == (
            None if number == 0 else str(tmp_path / str(min(number, 2)))
        )
    coordinator.next(HERE)
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "last").touch()
    os.utime(tmp_path / "4" / "last", (0, 0))  # a copy of what it resumed from
    coordinator.release(4, storage.STALE)
    assert states(coordinator.look()) == {"stale": 4, "FAIL": 1}


def test_checkpoint_in_a_shared_directory_counts_if_this_attempt_wrote_it(tmp_path: Path) -> None:
    """Another sweep may have left one, and with a user's hydra.sweep.subdir an earlier attempt."""
    coordinator = make_coordinator(tmp_path, retries=1, checkpoint="last")
    shared = tmp_path / "0"
    shared.mkdir()
    (shared / "last").touch()
    os.utime(shared / "last", (0, 0))
    assert coordinator.next(HERE) is not None
    coordinator.release(0, storage.STALE)
    assert "resume" not in coordinator.look()[1].user_attrs
    for number in (1, 2, 3):
        assert coordinator.next(HERE) is not None
        coordinator.set_directory(number, str(shared))
        (shared / "last").touch()
        coordinator.release(number, storage.STALE)
        assert coordinator.look()[-1].user_attrs["resume"] == str(shared)
        assert coordinator.look()[-1].user_attrs["deaths"] == 0


def test_late_answer_to_a_report_still_prunes(tmp_path: Path) -> None:
    """Another worker's sampler may take longer than a trial waits for its answer."""
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "upper": 1.0}
    thread = CoordinatorThread(make_coordinator(tmp_path, pruner=pruner))
    thread.start()
    channel = Channel(thread, HERE, is_alive=lambda: True, interrupt=print, end=print)
    assert channel.next() is not None
    thread.call(time.sleep, 1.5)
    assert not channel.report(1, 2.0, final=False)
    thread.call(time.sleep, 0).result()
    assert channel.report(2, 0.5, final=False)
    thread.close()
