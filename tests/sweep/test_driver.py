"""The engine with real drivers, workers and databases, and a task that trains nothing."""

import contextlib
import multiprocessing
import re
import signal
import sqlite3
import time
from pathlib import Path

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from mnist_sweep.sweep import driver
from mnist_sweep.sweep import study as storage
from tests.helpers import engine
from tests.helpers.engine import n_done, run, start, states, trials

pytestmark = pytest.mark.slow


def params(found: list[optuna.trial.FrozenTrial]) -> list[dict[str, object]]:
    """Parameters of the trials that were not replaced, by number."""
    return [t.params for t in found if "replaced" not in t.user_attrs]


def test_grid_runs_in_the_order_written(store: Path) -> None:
    code, out = run("x=3,1,2", "act=ok,raise", "sweep.name=g", store=store)
    found = trials(store, "g")
    assert [(t.params["x"], t.params["act"]) for t in found] == [
        (x, act) for x in (3, 1, 2) for act in ("ok", "raise")
    ]
    assert code == 1, "a trial failed"
    assert "failed 3x: ValueError: the task raised" in out
    assert "best: trial 0" in out
    assert states(found) == {"COMPLETE": 3, "FAIL": 3}
    assert (store / "outputs" / "g" / "optimization_results.yaml").exists()


def test_repeated_grid_runs_only_what_failed(store: Path) -> None:
    run("x=1,2", "act=ok,raise", "sweep.name=g", store=store)
    run("x=1,2", "act=ok,raise", "sweep.name=g", store=store)
    again = trials(store, "g")[4:]
    assert [t.params for t in again] == [{"x": 1, "act": "raise"}, {"x": 2, "act": "raise"}]


def test_interrupted_grid_with_a_failing_point_in_its_queue_ends(store: Path) -> None:
    arguments = ("x=1,2,3", "act=ok,raise", "sleep_s=0.3", "sweep.name=g")
    first = start(*arguments, store=store)
    try:
        engine.wait_for(lambda: states(trials(store, "g"))["COMPLETE"] >= 1)
        first.send_signal(signal.SIGINT)
        assert first.wait(20) == 130
    finally:
        engine.end(first)
    assert states(trials(store, "g"))["WAITING"] >= 4
    code, _ = run(*arguments, store=store, timeout=60)
    assert code == 1, "three points fail"
    found = trials(store, "g")
    assert sorted(t.params["x"] for t in found if t.value is not None) == [1, 2, 3]
    assert states(found)["FAIL"] - 3 in (0, 1), "one may have failed before, and again"
    assert "WAITING" not in states(found)


def test_grid_with_another_range_runs_its_own_points(store: Path) -> None:
    run("x=range(1,4)", "sweep.name=g", store=store)
    code, out = run("x=range(3,6)", "sweep.name=g", "sweep.extend=true", store=store)
    assert code == 0, out
    assert [t.params["x"] for t in trials(store, "g")] == [1, 2, 3, 4, 5]


def test_long_grid_is_queued_in_parts(store: Path) -> None:
    code, _ = run(
        "x=range(0,90)", "sleep_s=0", "epochs=1", "sweep.name=g", "sweep.n_jobs=4", store=store
    )
    assert code == 0
    done = [t for t in trials(store, "g") if t.state is TrialState.COMPLETE]
    assert sorted(t.params["x"] for t in done) == list(range(90)), "each once"
    assert set(states(trials(store, "g"))) <= {"COMPLETE", "surplus"}


def test_queued_trial_goes_to_one_worker_only(store: Path) -> None:
    """SQLite ignores SELECT ... FOR UPDATE, and hands one out twice about once in six."""
    url = f"sqlite:///{store}/optuna.db"
    study = storage.create_study(url, 60, "queue", ["maximize"])
    for x in range(60):
        study.enqueue_trial({"x": x}, user_attrs={"queued": True})
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        popped = pool.map(pop_all, [url] * 4, chunksize=1)
    assert sorted(number for numbers in popped for number in numbers) == list(range(60))


def pop_all(url: str) -> list[int]:
    study = optuna.load_study(study_name="queue", storage=storage.open_storage(url, 60))
    popped = []
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        trial = study.ask()
        if "queued" in trial.user_attrs:  # else it came too late for the queue
            popped.append(trial.number)
    return popped


def test_search_resumes_to_exactly_n_trials_and_extends(store: Path) -> None:
    arguments = ("x=interval(0,1)", "sweep.name=s")
    assert run(*arguments, "sweep.n_trials=5", store=store)[0] == 0
    assert run(*arguments, "sweep.n_trials=5", store=store)[0] == 0
    assert len(trials(store, "s")) == 5
    run(*arguments, "sweep.n_trials=8", store=store)
    assert n_done(trials(store, "s")) == 8


def test_search_with_the_same_seed_gives_the_same_trials_interrupted_or_not(store: Path) -> None:
    arguments = ("x=interval(0,1)", "epochs=range(1,9)", "sweep.n_trials=14", "sleep_s=0.05")
    run(*arguments, "sweep.name=whole", store=store)
    first = start(*arguments, "sweep.name=parts", store=store)
    engine.wait_for(lambda: n_done(trials(store, "parts")) >= 4)
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    # multiprocessing's tracker is the last
    engine.wait_for(lambda: not engine.group_alive(first), 3)
    assert not [t for t in trials(store, "parts") if t.state is TrialState.RUNNING]
    assert "sweep.name=parts" in engine.output(store)
    run(*arguments, "sweep.name=parts", store=store)
    whole, parts = params(trials(store, "whole")), params(trials(store, "parts"))
    assert sorted(map(str, parts)) == sorted(map(str, whole))
    run(*arguments, "sweep.name=other", "sweep.seed=7", store=store)
    assert params(trials(store, "other")) != whole


def test_changed_space_is_refused_with_the_difference(store: Path) -> None:
    run("x=interval(0,1)", "sweep.name=c", "sweep.n_trials=2", store=store)
    code, out = run("x=interval(0,2)", "sweep.name=c", "sweep.n_trials=3", store=store)
    assert code != 0
    assert "another search space" in out
    assert '"high": 1.0' in out
    assert '"high": 2.0' in out
    code, _ = run(
        "x=interval(0,2)", "sweep.name=c", "sweep.n_trials=3", "sweep.extend=true", store=store
    )
    assert code == 0
    assert n_done(trials(store, "c")) == 3


def test_changed_condition_is_refused_with_the_difference(store: Path) -> None:
    arguments = ("act=choice(ok,fine)", "x=interval(0,1)", "sweep.n_trials=2", "sweep.name=c")
    run(*arguments, "+sweep.when={x:{act:[ok]}}", store=store)
    code, out = run(*arguments, "+sweep.when={x:{act:[fine]}}", store=store)
    assert code != 0
    assert "when x: {'act': ['ok']} -> {'act': ['fine']}" in out


def test_conditional_parameters_exist_only_if_their_condition_holds(store: Path) -> None:
    when = "+sweep.when={epochs:{act:[ok]}}"
    arguments = ("act=choice(ok,fine)", "epochs=range(1,4)", when, "x=interval(0,1)")
    run(*arguments, "sweep.n_trials=12", "sweep.name=w", store=store)
    found = trials(store, "w")
    assert {t.params["act"] for t in found} == {"ok", "fine"}
    assert all(("epochs" in t.params) == (t.params["act"] == "ok") for t in found)


def test_bad_trials_do_not_stop_the_sweep(store: Path) -> None:
    """Trials that raise, hang, run out of memory, return NaN, and kill their process."""
    code, out = run(
        "act=ok,raise,hang,memory,not_finite,die,fine",
        "sweep.name=bad",
        "sweep.n_jobs=2",
        "sweep.trial_timeout_s=6",
        "sweep.grace_s=4",
        "sweep.retries=1",
        store=store,
    )
    last = {t.params["act"]: t for t in trials(store, "bad")}
    assert code == 1
    assert {act for act, t in last.items() if t.state is TrialState.COMPLETE} == {"ok", "fine"}
    errors = {act: t.user_attrs.get("error", "") for act, t in last.items()}
    assert errors["raise"] == "ValueError: the task raised"
    assert "trial_timeout_s=6" in errors["hang"]
    assert "MemoryError" in errors["memory"]
    assert "not finite" in errors["not_finite"]
    assert errors["die"] == "its process ended 2 times in a row without progress"
    assert states(trials(store, "bad"))["stale"] == 1, "retried once"
    assert "Traceback" not in out


def test_task_that_exits_is_retried_like_a_death(store: Path) -> None:
    code, out = run("act=ok,exit,fine", "sweep.name=x", "sweep.retries=2", store=store, timeout=60)
    assert code == 1, out
    found = trials(store, "x")
    assert states(found) == {"COMPLETE": 2, "stale": 2, "FAIL": 1}
    assert found[-1].user_attrs["error"] == "its process ended 3 times in a row without progress"


def test_time_limit_at_the_end_of_a_trial_ends_no_worker(store: Path) -> None:
    """With hydra/launcher=basic the worker is the driver's own process, so its end would end the sweep."""
    code, out = run(
        "x=range(0,8)",
        "epochs=1",
        "sleep_s=0.97",
        "sweep.trial_timeout_s=1",
        "sweep.grace_s=1",
        "sweep.max_failure_rate=1",
        "hydra/launcher=basic",
        "sweep.name=t",
        store=store,
    )
    assert "interrupted" not in out
    assert code in (0, 1)
    assert len(trials(store, "t")) == 8
    assert set(states(trials(store, "t"))) <= {"COMPLETE", "FAIL"}


def test_failure_rate_above_the_limit_stops_the_search(store: Path) -> None:
    code, out = run(
        "x=interval(0,1)",
        "act=raise",
        "sweep.n_trials=20",
        "sweep.max_failure_rate=0.1",
        "sweep.name=f",
        store=store,
    )
    assert code == 1
    assert states(trials(store, "f")) == {"FAIL": 3}
    assert "no trial completed" in out
    assert "failed 3x" in out
    assert "Traceback" not in out


def test_budget_is_exact_when_eight_workers_race_for_the_last_trial(store: Path) -> None:
    for round_ in range(3):
        name = f"race{round_}"
        arguments = ("x=interval(0,1)", "sleep_s=0", "sweep.n_jobs=8", f"sweep.name={name}")
        assert run(*arguments, "sweep.n_trials=30", store=store)[0] == 0
        assert n_done(trials(store, name)) == 30
        assert not [t for t in trials(store, name) if not t.state.is_finished()]


def test_two_drivers_share_one_budget(store: Path) -> None:
    arguments = ("x=interval(0,1)", "sweep.n_trials=20", "sweep.n_jobs=2", "sweep.name=two")
    drivers = [start(*arguments, store=store) for _ in range(2)]
    try:
        assert [driver.wait(120) for driver in drivers] == [0, 0]
    finally:
        for driver in drivers:
            engine.end(driver)
    assert n_done(trials(store, "two")) == 20
    assert len({str(p) for p in params(trials(store, "two"))}) == 20, "no point twice"


def test_two_drivers_share_one_grid(store: Path) -> None:
    drivers = [start("x=1,2,3,4,5,6", "sweep.name=two", store=store) for _ in range(2)]
    try:
        assert [driver.wait(120) for driver in drivers] == [0, 0]
    finally:
        for driver in drivers:
            engine.end(driver)
    done = [t.params["x"] for t in trials(store, "two") if t.state is TrialState.COMPLETE]
    assert sorted(done) == [1, 2, 3, 4, 5, 6]


def test_other_choices_cannot_extend_a_study(store: Path) -> None:
    """Optuna fixes the choices of a parameter. Its own error would appear in every trial."""
    run("x=1,2", "sweep.name=e", store=store)
    code, out = run("x=3,2,1", "sweep.name=e", "sweep.extend=true", store=store)
    assert code != 0
    assert "choose another sweep.name\n" in out
    assert len(trials(store, "e")) == 2


def test_short_trials_do_not_wait_for_long_ones(store: Path) -> None:
    """One worker runs a trial of 8 s while the other runs all short trials."""
    events = store / "events"
    code, _ = run(
        "sleep_s=8,1.0,1.01,1.02,1.03",
        "epochs=1",
        "x=0",
        f"events={events}",
        "sweep.n_jobs=2",
        "sweep.name=b",
        store=store,
    )
    assert code == 0
    found = trials(store, "b")
    long = next(t for t in found if t.params["sleep_s"] == 8)
    assert long.datetime_complete == max(t.datetime_complete for t in found)


@pytest.mark.parametrize(
    ("listed", "device", "seen"),
    [
        ("GPU 0: NVIDIA H200 (UUID: GPU-a)\nGPU 1: NVIDIA H200 (UUID: GPU-b)", "auto", ["0", "1"]),
        ("GPU 0: NVIDIA H200 (UUID: GPU-a)\nGPU 1: NVIDIA H200 (UUID: GPU-b)", "cuda:1", []),
        (
            "GPU 0: NVIDIA A100 (UUID: GPU-a)\n"
            "  MIG 1g.5gb Device 0: (UUID: MIG-11111111-2222-3333-4444-555555555555)\n"
            "  MIG 1g.5gb Device 1: (UUID: MIG-11111111-2222-3333-4444-666666666666)",
            "cuda",
            [f"MIG-11111111-2222-3333-4444-{n * 12}" for n in "56"],
        ),
    ],
)
def test_visible_gpus_are_those_the_process_may_use(
    listed: str, device: str, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"  # in the words of the real one, which needs a card
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert driver._visible_gpus(OmegaConf.create({"device": device})) == seen


def test_worker_sees_one_gpu_and_its_share_of_threads(store: Path) -> None:
    events = store / "events"
    run(
        "x=1,2,3,4,5,6,7,8",
        "sweep.device=auto",
        "sleep_s=1",
        f"events={events}",
        "sweep.name=gpu",
        "sweep.trials_per_gpu=2",
        store=store,
        CUDA_VISIBLE_DEVICES="3,5",
        OMP_NUM_THREADS="8",
    )
    seen = set(re.findall(r"pid=(\d+) gpu=(\S+) threads=(\d+)", events.read_text()))
    assert sorted(gpu for _, gpu, _ in seen) == ["3", "3", "5", "5"], "four workers, two a GPU"
    assert {threads for *_, threads in seen} == {"2"}, "eight threads for four workers"


def test_skipped_duplicates_end_the_search_of_an_exhausted_space(store: Path) -> None:
    arguments = ("x=choice(1,2,3)", "+sweep.sampler={_target_: optuna.samplers.RandomSampler}")
    run(
        *arguments,
        "sweep.n_trials=5",
        "sweep.duplicates=skip",
        "sweep.name=d",
        store=store,
    )
    done = [t.params["x"] for t in trials(store, "d") if t.state is TrialState.COMPLETE]
    assert sorted(done) == [1, 2, 3]


def test_dry_run_lists_the_trials_and_creates_nothing(fresh: Path) -> None:
    code, out = run("x=1,2", "act=ok,fine", "sweep.dry_run=true", store=fresh)
    assert code == 0
    assert re.findall(r"x=(\d) act=(\w+)", out) == [
        ("1", "ok"), ("1", "fine"), ("2", "ok"), ("2", "fine"),
    ]  # fmt: skip
    code, out = run(
        "x=interval(0,1)", "sweep.n_jobs=4", "sweep.n_trials=9", "sweep.dry_run=true", store=fresh
    )
    assert len(re.findall(r"x=0\.\d+", out)) == 4, "the first batch of a study"
    assert [p.name for p in fresh.iterdir()] == ["out.txt"]


def test_edited_configuration_does_not_change_a_sweep(store: Path, tmp_path: Path) -> None:
    """Trials are composed from the copy in the sweep's directory."""
    run("x=1,2", "sweep.name=frozen", store=store)
    copied = store / "outputs" / "frozen" / "conf" / "config.yaml"
    assert "act: ok" in copied.read_text()
    copied.write_text(copied.read_text().replace("act: ok", "act: raise"))
    _, out = run("x=1,2,3", "sweep.name=frozen", "sweep.extend=false", store=store)
    assert "another search space" in out
    code, out = run("x=2,1", "sweep.name=frozen2", store=store)
    assert code == 0


def test_hydras_own_sweepers_stay_available(store: Path) -> None:
    for sweeper in ("basic", "optuna"):
        code, out = run(
            "x=1,2",
            f"hydra/sweeper={sweeper}",
            f"hydra.sweep.dir={store}/{sweeper}",
            f"events={store}/{sweeper}.txt",
            store=store,
        )
        assert code == 0, out
        assert "x=2" in (store / f"{sweeper}.txt").read_text()


def test_sweep_waits_for_a_locked_database(store: Path) -> None:
    driver = start("x=1,2,3,4", "sleep_s=0.3", "sweep.name=lock", store=store)
    try:
        engine.wait_for(lambda: n_done(trials(store, "lock")) >= 1)
        with contextlib.closing(sqlite3.connect(store / "optuna.db", timeout=60)) as database:
            database.execute("BEGIN EXCLUSIVE")
            time.sleep(8)  # SQLite's own timeout is 5 s
            database.rollback()
        assert driver.wait(90) == 0
    finally:
        engine.end(driver)
    assert states(trials(store, "lock")) == {"COMPLETE": 4}
