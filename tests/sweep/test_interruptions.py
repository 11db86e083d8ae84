"""Sweeps of real training that are killed anywhere and resumed by the same command."""

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from tests.helpers import engine
from tests.helpers.cli import recorded
from tests.helpers.engine import end, n_done, start, states, trials, wait_for

TINY = (
    "data=mnist5k",
    "data.train_size=200",
    "data.val_size=100",
    "trainer.max_epochs=2",
    "tracking.log_model=false",
    "sweep.report=false",
    "sweep.grace_s=4",
    "sweep.retries=100",  # ten rounds may hit one trial again and again
)
SEARCH = ("optimizer.lr=tag(log,interval(1e-4,1e-2))", "sweep.n_jobs=2", *TINY)


def check_nothing_is_lost(store: Path, name: str, n_trials: int) -> None:
    """Assert that the budget is exact, no trial is RUNNING, and each has its run and directory."""
    found = trials(store, name)
    done = [t for t in found if t.state in engine.DONE]
    assert len(done) == n_trials, states(found)
    assert all(t.state.is_finished() for t in found), states(found)
    runs = recorded(store)
    assert {r.info.status for r in runs} <= {"FINISHED", "KILLED"}
    finished = [
        r.data.tags["trial"] for r in runs if r.info.status == "FINISHED" and "trial" in r.data.tags
    ]
    for trial in done:
        assert finished.count(str(trial.number)) == 1
        assert (store / "outputs" / name / str(trial.number) / "best.pt").exists()


@pytest.mark.slow
def test_sweep_killed_ten_times_at_random_completes(store: Path) -> None:
    rng = random.Random(0)
    n_trials, arguments = 14, (*SEARCH, "sweep.n_trials=14", "sweep.name=k")
    driver = None
    try:
        for round_ in range(10):
            if driver is None or driver.poll() is not None:
                driver = start(*arguments, store=store, module="mnist_sweep")
            so_far = n_done(trials(store, "k"))
            target = min(n_trials - 1, so_far + 1)
            wait_for(lambda target=target: n_done(trials(store, "k")) >= target)
            time.sleep(rng.uniform(0, 1.5))
            whom = ("worker", "workers", "driver")[round_ % 3]
            if whom == "driver":
                driver.kill()
                driver.wait()
                # its workers notice, give their trials back and end
                wait_for(lambda driver=driver: not engine.group_alive(driver), 30)
            else:
                victims = engine.workers(driver)
                for victim in victims if whom == "workers" else victims[:1]:
                    with contextlib.suppress(Exception):
                        victim.kill()
        if driver.poll() is None:
            assert driver.wait(180) == 0
        else:
            code, out = engine.run(*arguments, store=store, module="mnist_sweep")
            assert code == 0, out
    finally:
        if driver is not None:
            engine.end(driver)
    check_nothing_is_lost(store, "k", n_trials)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running_and_the_same_command_completes(store: Path) -> None:
    arguments = (*SEARCH, "sweep.n_trials=6", "sweep.name=c")
    driver = start(*arguments, store=store, module="mnist_sweep")
    try:
        wait_for(lambda: n_done(trials(store, "c")) >= 1)
        os.kill(driver.pid, signal.SIGINT)
        assert driver.wait(10) == 130
        wait_for(
            lambda: not engine.group_alive(driver), 15
        )  # the server of the workers is the last
    finally:
        engine.end(driver)
    assert not [t for t in trials(store, "c") if t.state is TrialState.RUNNING]
    assert "RUNNING" not in {run.info.status for run in recorded(store)}
    assert "sweep.name=c" in engine.output(store).splitlines()[-1]
    code, out = engine.run(*arguments, store=store, module="mnist_sweep")
    assert code == 0, out
    check_nothing_is_lost(store, "c", 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)]
)
def test_signal_to_the_driver_does_not_count_as_a_death(
    store: Path, signum: signal.Signals, send: Callable[[int, int], None]
) -> None:
    """Ctrl-C reaches the whole process group, SIGTERM only the driver."""
    for _ in range(2):
        sweep = start("x=1,2", "sweep.name=s", "sleep_s=1", "epochs=60", store=store)
        try:
            wait_for(lambda: any(t.intermediate_values for t in running(store)))
            send(sweep.pid, signum)
            sweep.wait(60)
        finally:
            end(sweep)
    found = trials(store, "s")
    assert states(found) == {"interrupted": 2, "WAITING": 2}
    assert not any("deaths" in t.user_attrs for t in found)


def running(store: Path) -> list[FrozenTrial]:
    return [t for t in trials(store, "s") if t.state is TrialState.RUNNING]


def test_dead_trial_resumes_from_its_checkpoint(store: Path) -> None:
    """A trial killed in its second epoch is retried and ends bit-identical."""
    arguments = ("optimizer.lr=1e-3,2e-3", *TINY, "trainer.max_epochs=12", "data.train_size=500")
    driver = start(*arguments, "sweep.name=r", store=store, module="mnist_sweep")
    try:
        first = store / "outputs" / "r" / "0"
        wait_for((first / "last.pt").exists)
        engine.workers(driver)[0].kill()
        assert driver.wait(200) == 0
    finally:
        engine.end(driver)
    found = trials(store, "r")
    assert found[0].user_attrs["replaced"] == "stale"
    retried = next(t for t in found if t.user_attrs.get("resume"))
    assert retried.params == found[0].params
    assert retried.user_attrs["resume"] == str(first)
    log = (store / "outputs" / "r" / str(retried.number) / "run.log").read_text()
    assert "resuming after epoch" in log
    code, _ = engine.run(*arguments, "sweep.name=whole", store=store, module="mnist_sweep")
    assert code == 0
    whole = {str(t.params): t.value for t in trials(store, "whole")}
    assert {str(t.params): t.value for t in found if t.value is not None} == whole


@pytest.mark.slow
def test_databases_locked_for_20_s_lose_nothing(store: Path) -> None:
    driver = start(*SEARCH, "sweep.n_trials=6", "sweep.name=l", store=store, module="mnist_sweep")
    try:
        wait_for(lambda: n_done(trials(store, "l")) >= 1)
        with contextlib.ExitStack() as locks:
            for name in ("optuna.db", "mlflow.db"):
                database = sqlite3.connect(store / name, timeout=60)
                locks.enter_context(contextlib.closing(database))
                database.execute("BEGIN EXCLUSIVE")
            time.sleep(20)
        assert driver.wait(120) == 0
    finally:
        engine.end(driver)
    check_nothing_is_lost(store, "l", 6)
