"""Faults around a sweep: a database that is away, a driver that dies, processes left behind."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from tests.helpers import engine
from tests.helpers.engine import end, start, states, trials, wait_for

pytestmark = pytest.mark.slow

AWAY_S = 15  # longer than a call waits for SQLite's lock


@contextlib.contextmanager
def locked(store: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(store / "optuna.db", timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.rollback()


def events(store: Path) -> list[str]:
    path = store / "events"
    return path.read_text().splitlines() if path.exists() else []


def test_trials_go_on_while_the_database_is_away(store: Path) -> None:
    arguments = ("x=1,2,3", "sleep_s=0.5", "epochs=4", "sweep.n_jobs=2", "sweep.name=away")
    driver = start(*arguments, f"events={store}/events", store=store)
    try:
        wait_for(lambda: len(events(store)) == 2)
        with locked(store):
            wait_for(lambda: sum("end" in line for line in events(store)) == 2, AWAY_S)
            time.sleep(AWAY_S)
        assert driver.wait(60) == 0
    finally:
        end(driver)
    found = trials(store, "away")
    assert states(found) == {"COMPLETE": 3}
    assert all(len(t.intermediate_values) == 4 for t in found), "no report is lost"
    out = engine.output(store)
    assert "waiting for the database of the study: database is locked" in out
    assert "the database is back after" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("epochs", [2, 30], ids=["between trials", "in a trial"])
def test_ctrl_c_during_an_outage_ends_within_seconds(store: Path, epochs: int) -> None:
    arguments = ("x=1,2,3,4", "sleep_s=0.3", f"epochs={epochs}", "sweep.n_jobs=2")
    arguments += (f"events={store}/events", "sweep.name=away")
    driver = start(*arguments, store=store)
    try:
        wait_for(lambda: len(events(store)) == 2)
        with locked(store):
            time.sleep(2)
            os.killpg(driver.pid, signal.SIGINT)
            assert driver.wait(10) == 130
            wait_for(lambda: not engine.group_alive(driver), 5)
    finally:
        end(driver)
    assert "interrupted; resume with:" in engine.output(store)
    assert "OperationalError" not in engine.output(store)
    code, out = engine.run(*arguments, store=store)
    assert code == 0, out


@pytest.mark.parametrize("gone", ["db", "db/optuna.db"])
def test_database_that_is_deleted_ends_the_sweep(store: Path, gone: str) -> None:
    (store / "db").mkdir(parents=True)
    url = f"sweep.storage=sqlite:///{store}/db/optuna.db"
    driver = start("x=1,2", "sleep_s=0.2", "epochs=1000", url, "sweep.name=g", store=store)
    try:
        wait_for((store / "outputs/g/0/.hydra").exists)
        subprocess.run(["rm", "-r", str(store / gone)], check=True)
        assert driver.wait(30) == 1
    finally:
        end(driver)
    assert "optuna.db: the database failed: " in engine.output(store)
    assert "Traceback" not in engine.output(store)


def test_trial_of_a_killed_driver_runs_again_and_no_death_is_counted(store: Path) -> None:
    arguments = ("x=1,2", "sleep_s=0.2", "epochs=8", "sweep.name=k", "sweep.retries=0")
    for _ in range(2):
        driver = start(*arguments, store=store)
        try:
            wait_for(lambda: running(store))
            driver.kill()
            driver.wait()
            # its workers end by themselves
            wait_for(lambda driver=driver: not engine.group_alive(driver), 10)
        finally:
            end(driver)
    code, out = engine.run(*arguments, store=store)
    assert code == 0, out
    assert states(trials(store, "k"))["COMPLETE"] == 2
    assert not any("deaths" in t.user_attrs for t in trials(store, "k"))


def running(store: Path) -> bool:
    found = [t for t in trials(store, "k") if t.state is TrialState.RUNNING]
    return any(t.intermediate_values for t in found)


def test_process_that_outlives_its_killed_worker_blocks_nothing(store: Path) -> None:
    """A child of the task, such as a data loader, holds the worker's pipe."""
    driver = start("act=ok,orphan,fine", "sweep.name=o", "sweep.retries=0", store=store)
    try:
        assert driver.wait(60) == 1
        assert engine.group_alive(driver), "the child stays"
    finally:
        end(driver)
    assert states(trials(store, "o")) == {"COMPLETE": 2, "FAIL": 1}


def test_workers_import_neither_optuna_nor_sqlalchemy(store: Path) -> None:
    code, out = engine.run("x=1,2", f"events={store}/events", "sweep.name=w", store=store)
    assert code == 0, out
    started = [line for line in events(store) if line.startswith("start")]
    assert len(started) == 2
    assert all(line.endswith("imported=") for line in started), started


def test_forked_workers_draw_different_random_numbers(store: Path) -> None:
    arguments = (
        "x=1,2",
        "sleep_s=2",
        "sweep.n_jobs=2",
        "+sweep.preload=[numpy.random]",
        "sweep.name=r",
    )
    code, out = engine.run(*arguments, f"events={store}/events", store=store)
    assert code == 0, out
    started = [line.split() for line in events(store) if "start" in line]
    workers, drawn = ({words[i] for words in started} for i in (2, 5))
    assert len(workers) == len(drawn) == 2
    assert "drawn=None" not in drawn


def test_sigterm_to_the_driver_leaves_no_trial_running(store: Path) -> None:
    """The worker needs a second to obey, because the signal reaches only the driver."""
    driver = start("x=1,2", "sleep_s=0.2", "epochs=50", "sweep.name=k", store=store)
    try:
        wait_for(lambda: running(store))
        driver.send_signal(signal.SIGTERM)
        driver.wait(20)
    finally:
        end(driver)
    assert states(trials(store, "k"))["interrupted"] == 1
    assert not any("deaths" in t.user_attrs for t in trials(store, "k"))
    assert not [t for t in trials(store, "k") if t.state is TrialState.RUNNING]


ENDS = {"SIGKILL": "stale", "SIGTERM": "interrupted", "SIGUSR2": "interrupted"}


@pytest.mark.parametrize("name", ENDS)
def test_ends_of_a_process_never_end_a_trial_that_makes_progress(store: Path, name: str) -> None:
    """The third attempt without progress in a row would FAIL it."""
    arguments = ("x=1", "sleep_s=0.1", "epochs=40", "save=true", "sweep.checkpoint=epoch")
    driver = start(*arguments, "sweep.name=k", store=store)
    try:
        for number in range(4):
            saved = store / "outputs" / "k" / str(number) / "epoch"
            wait_for(lambda saved=saved: saved.exists() and saved.read_text())
            for worker in engine.workers(driver):
                worker.send_signal(signal.Signals[name])
        assert driver.wait(60) == 0
    finally:
        end(driver)
    found = trials(store, "k")
    assert states(found) == {ENDS[name]: 4, "COMPLETE": 1}
    assert all("resume" in t.user_attrs for t in found[1:])
    n_epochs = [len(t.intermediate_values) for t in found]
    assert n_epochs == sorted(n_epochs), "each attempt goes on from the one before"
    assert n_epochs[-1] == 40


def test_interruptions_without_progress_end_a_trial_after_its_retries(store: Path) -> None:
    """A first interruption is no failure, not even with sweep.retries=0."""
    driver = start("x=1", "sleep_s=30", "sweep.retries=0", "sweep.name=k", store=store)
    try:
        for number in range(2):
            wait_for(lambda number=number: len(trials(store, "k")) == number + 1)
            wait_for(lambda: [t for t in trials(store, "k") if "directory" in t.user_attrs])
            wait_for(lambda number=number: (store / f"outputs/k/{number}/.hydra").exists())
            for worker in engine.workers(driver):
                worker.send_signal(signal.SIGUSR2)
        assert driver.wait(60) == 1
    finally:
        end(driver)
    found = trials(store, "k")
    assert states(found) == {"interrupted": 1, "FAIL": 1}
    assert found[-1].user_attrs["error"] == "its process ended 2 times in a row without progress"


def test_sigusr2_to_all_processes_of_a_sweep_interrupts_it(store: Path) -> None:
    """SLURM's --signal=USR2 reaches the driver, the server of the workers, and the workers."""
    driver = start("x=1,2", "sleep_s=0.2", "epochs=50", "sweep.name=k", store=store)
    try:
        wait_for(lambda: running(store))
        os.killpg(driver.pid, signal.SIGUSR2)
        assert driver.wait(20) == 128 + signal.SIGUSR2
        wait_for(lambda: not engine.group_alive(driver), 5)
    finally:
        end(driver)
    found = trials(store, "k")
    assert states(found)["interrupted"] == 1
    assert not any("deaths" in t.user_attrs for t in found)
    assert "interrupted; resume with:" in engine.output(store)


def test_preempted_worker_of_submitit_gives_its_job_back_to_submitit(store: Path) -> None:
    arguments = ("x=1", "sleep_s=0.2", "epochs=40", "save=true", "sweep.checkpoint=epoch")
    driver = start(*arguments, "hydra/launcher=submitit_local", "sweep.name=k", store=store)
    try:
        for number in range(3):
            wait_for((store / f"outputs/k/{number}/epoch").exists)
            for process in psutil.Process(driver.pid).children(recursive=True):
                if "submitit.core._submit" in process.cmdline():
                    process.send_signal(signal.SIGUSR2)
        assert driver.wait(60) == 0
    finally:
        end(driver)
    assert states(trials(store, "k")) == {"interrupted": 3, "COMPLETE": 1}
    (log,) = store.glob("outputs/k/.submitit/*/*_log.out")
    assert log.read_text().count("Requeued job") == 3


def test_time_limit_holds_for_a_trial_that_reports_all_the_time(store: Path) -> None:
    arguments = ("x=1", "sleep_s=0.1", "epochs=100", "sweep.trial_timeout_s=2", "sweep.name=t")
    code, out = engine.run(*arguments, store=store)
    assert code == 1, out
    (trial,) = trials(store, "t")
    assert "trial_timeout_s=2" in trial.user_attrs["error"]
