"""A study that is cut anywhere, any number of times, equals an uncut one under another name."""

import json
import math
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, event

from mnist_sweep.common.processes import process_identity
from mnist_sweep.sweep import optuna_internals, samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.coordinator import Coordinator
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.space import parse
from mnist_sweep.sweep.worker import Assignment, Result
from tests.helpers import engine
from tests.helpers.settings import sweep_settings

CONF = Path(__file__).parents[2] / "conf"
ENDED = {**process_identity(), "boot_id": "another boot"}  # a process that is certainly dead
CUTS = 20
N_TRIALS = 16
N_STEPS = 6
SPACE = ["a=interval(0,1)", "b=tag(log,interval(1e-3,1))", "c=choice(1,2)"]
FEW_POINTS = ["a=choice(0.2,0.3,0.4,0.5)", "b=choice(0.01,0.1,0.5)", "c=choice(1,2)"]
GRID = ["a=choice(0.9,0.1,0.4,0.3)", "b=choice(0.01,0.1)", "c=choice(1,2)"]
SMALLER = {  # so that few trials reach the interesting parts
    "tpe": {"n_startup_trials": 5},
    "gp": {"n_startup_trials": 8},
    "pareto": {"population_size": 4},
    "asha": {"min_resource": 1},
    "hyperband": {"max_resource": N_STEPS},
    "median": {"n_startup_trials": 2},
}
OTHERS = {
    "qmc": {"_target_": "optuna.samplers.QMCSampler", "scramble": True},
    "few points": {"_target_": "optuna.samplers.RandomSampler"},
    "patient": {
        "_target_": "optuna.pruners.PatientPruner",
        "patience": 1,
        "wrapped_pruner": {"_target_": "optuna.pruners.ThresholdPruner", "upper": 1.0},
    },
}


class Killed(BaseException):
    """The process ends here."""


def settings(search: str, pruner: str) -> DictConfig:
    """The settings that conf/ has for a search and a pruner."""
    chosen = {"name": "s", "seed": 3, "checkpoint": "last.json"}
    sampler = OTHERS.get(search) or OmegaConf.load(CONF / f"search/{search}.yaml").get("sampler")
    if sampler:
        chosen["sampler"] = {**sampler, **SMALLER.get(search, {})}
    if pruner != "none":
        node = OTHERS.get(pruner) or OmegaConf.load(CONF / f"pruner/{pruner}.yaml")
        chosen["pruner"] = OmegaConf.merge(node, SMALLER.get(pruner, {}))
    if search == "few points":
        chosen["duplicates"] = "skip"
    if search == "pareto":
        chosen["objectives"] = {"y": "minimize", "z": "maximize"}
    return sweep_settings(**chosen)


class Application:
    """A task with checkpoints.

    Args:
        kind: of its checkpoints. "none": it has none. "later": it saves after each report, and reports
            the later steps only. "again": it saves before each report, and reports all steps again.
    """

    def __init__(self, kind: str, n_values: int) -> None:
        self.kind, self.n_values = kind, n_values

    def run(self, coordinator: Coordinator, assignment: Assignment) -> Iterator[None]:
        """Run a trial. It may be interrupted at each step that it yields."""
        directory = coordinator.plan.directory / str(assignment.number)
        directory.mkdir()
        step = 0
        if assignment.resume_from is not None:
            step = json.loads((Path(assignment.resume_from) / "last.json").read_text())
        pruned = False
        for earlier in range(1, step + 1):
            if self.kind == "again":
                pruned = self.report(coordinator, assignment, earlier)
        while step < N_STEPS and not pruned:
            step += 1
            if self.kind == "again":
                (directory / "last.json").write_text(str(step))
            pruned = self.report(coordinator, assignment, step)
            if self.kind == "later" and not pruned:
                (directory / "last.json").write_text(str(step))
            yield
        values = [objective(assignment.params, step), assignment.params["a"]][: self.n_values]
        result = Result(pruned=True) if pruned else Result(values=values, summary={"n": step})
        if 0.8 < values[0] < 1 and not pruned:
            result = Result(error="a value that fails")
        coordinator.tell(assignment.number, result)

    def report(self, coordinator: Coordinator, assignment: Assignment, step: int) -> bool:
        if self.n_values > 1:
            return False
        value = objective(assignment.params, step)
        return coordinator.report(assignment.number, step, value, final=step == N_STEPS)


def objective(params: Any, step: int) -> float:
    """Learning curves that cross and turn."""
    a, b = params["a"], math.log10(params["b"])
    turned = 0.2 * (step - 3) ** 2 * abs(math.sin(9 * a)) if step > 3 else 0.0
    return float((a - 0.3) ** 2 + (b + 1) ** 2 / step + params.get("c", 1) / (1 + step) + turned)


def open_study(
    opened: storage.ExactStorage, folder: Path, name: str, chosen: DictConfig
) -> Coordinator:
    """Open the study as a new driver does."""
    study = optuna.create_study(
        storage=opened,
        study_name=name,
        directions=list((chosen.objectives or {"y": "minimize"}).values()),
        load_if_exists=True,
        sampler=samplers.make_sampler(chosen),
        pruner=samplers.make_pruner(chosen),
    )
    arguments = SPACE
    if chosen.duplicates == "skip":
        arguments = FEW_POINTS
    elif chosen.sampler is None:
        arguments = GRID
    elif "CmaEs" in chosen.sampler._target_:
        arguments = SPACE[:2]  # numbers only
    space = parse(chosen, arguments)
    plan = Plan(
        invocation="i",
        failed_before=frozenset(),
        study_name=name,
        space=space,
        n_trials=N_TRIALS,
        grid=space.grid(OmegaConf.create()) if chosen.sampler is None else None,
        metrics=list(chosen.objectives or ["y"]),
        settings=chosen,
        directory=folder / name,
        driver=ENDED,
        tags={},
    )
    plan.directory.mkdir(exist_ok=True)
    return Coordinator(study, plan, OmegaConf.create())


class Fuse:
    """Kills or stops a driver after a number of statements."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.n_left, self.kills, self.burnt = engine, math.inf, True, False

    @contextmanager
    def lit(self, n_statements: float, *, kills: bool) -> Iterator[None]:
        self.n_left, self.kills, self.burnt = n_statements, kills, False
        event.listen(self.engine, "before_cursor_execute", self._burn)
        try:
            yield
        finally:
            event.remove(self.engine, "before_cursor_execute", self._burn)

    def _burn(self, *_: Any) -> None:
        self.n_left -= 1
        self.burnt = self.n_left <= 0
        if self.burnt and self.kills:
            raise Killed


def run_study(
    opened: storage.ExactStorage,
    folder: Path,
    name: str,
    chosen: DictConfig,
    kind: str,
    *,
    n_cuts: int = 0,
) -> list[FrozenTrial]:
    """Run a study, which is killed or interrupted `n_cuts` times, anywhere. Return its trials."""
    rng, fuse = random.Random(name), Fuse(opened.engine)
    application = Application(kind, len(chosen.objectives or "y"))
    for cut in range(n_cuts + 1):
        coordinator = open_study(opened, folder, name, chosen)
        n_statements = rng.randint(1, 90) if cut < n_cuts else math.inf
        try:
            with fuse.lit(n_statements, kills=rng.random() < 0.7):
                coordinator.tick()
                while (assignment := coordinator.next(ENDED)) is not None:
                    for _ in application.run(coordinator, assignment):
                        if fuse.burnt:
                            coordinator.stop(storage.INTERRUPTED)
                            coordinator.release(assignment.number, storage.INTERRUPTED)
                            break
        except Killed:
            opened.scoped_session.remove()
            opened.engine.dispose()
    assert coordinator.is_over
    return coordinator.look()


def outcome(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    """What counts of each trial, in the order of their places."""
    kept = [t for t in trials if storage.REPLACED not in t.user_attrs]
    kept.sort(key=lambda t: t.user_attrs.get("first", t.number))
    return [(t.params, t.values, t.state.name, t.intermediate_values) for t in kept]


CASES = [
    *[((search, "none"), "none") for search in ("tpe", "random", "gp", "cmaes", "pareto", "qmc")],
    (("few points", "none"), "none"),
    *[
        (("random", pruner), kind)
        for pruner in ("asha", "hyperband", "median", "patient")
        for kind in ("later", "again")
    ],
    (("random", "asha"), "none"),
    (("grid", "asha"), "later"),
    (("tpe", "asha"), "later"),
    (("cmaes", "hyperband"), "later"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same")


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[storage.ExactStorage]:
    """A database of SQLite that does not wait for the disk."""
    url = storage.storage_url(None, str(folder))
    opened = storage.open_storage(url, 60, create=True)
    event.listen(opened.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    opened.engine.dispose()
    yield opened
    opened.engine.dispose()


@pytest.fixture(scope="module")
def whole(opened: storage.ExactStorage, folder: Path) -> dict[tuple[str, str], list[FrozenTrial]]:
    """The uncut studies, by search and pruner, as they are asked for."""

    class Whole(dict[tuple[str, str], list[FrozenTrial]]):
        def __missing__(self, key: tuple[str, str]) -> list[FrozenTrial]:
            name = f"whole-{'-'.join(key)}"
            self[key] = run_study(opened, folder, name, settings(*key), "later")
            return self[key]

    return Whole()


@pytest.mark.parametrize(("search", "kind"), CASES)
def test_study_cut_anywhere_is_the_same(
    search: tuple[str, str],
    kind: str,
    opened: storage.ExactStorage,
    folder: Path,
    whole: dict[tuple[str, str], list[FrozenTrial]],
) -> None:
    expected = outcome(whole[search])
    states = Counter(state for _, _, state, _ in expected)
    assert states["COMPLETE"] + states["PRUNED"] == N_TRIALS - states["FAIL"] * (
        search[0] == "grid"
    )
    assert bool(states["PRUNED"]) is (search[1] != "none")
    name = f"parts-{'-'.join(search)}-{kind}"
    parts = run_study(opened, folder, name, settings(*search), kind, n_cuts=CUTS)
    n_replaced = sum(storage.REPLACED in t.user_attrs for t in parts)
    assert n_replaced >= CUTS / 4, "the others fall between two trials"
    assert outcome(parts) == expected


def test_new_driver_waits_for_the_trial_that_a_dead_driver_leaves(
    opened: storage.ExactStorage, folder: Path
) -> None:
    """It gets the trial with its last checkpoint. A trial begun before would be of another place."""
    worker = subprocess.Popen(["sleep", "60"])
    try:
        chosen = settings("random", "none")
        first = open_study(opened, folder, "orphan", chosen)
        left = first.next(process_identity(worker.pid))
        assert left is not None
        second = open_study(opened, folder, "orphan", chosen)
        second.tick()
        assert second.next(ENDED) is None
        assert not second.is_over
    finally:
        worker.kill()
        worker.wait()
    second.tick()
    retry = second.next(ENDED)
    assert retry is not None
    assert retry.params == left.params


def test_queued_trial_is_claimed_once(opened: storage.ExactStorage, folder: Path) -> None:
    coordinator = open_study(opened, folder, "queue", settings("random", "none"))
    coordinator.study.enqueue_trial({"a": 0.5})
    (queued,) = coordinator.look()
    claim = partial(opened.claim, optuna_internals.trial_id(queued))
    assert claim({"worker": {"pid": "1"}})
    assert not claim({"worker": {"pid": "2"}})
    assert claim({"worker": {"pid": "1"}}), "repeated after an outage"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("TPESampler,n_startup_trials:3", "SuccessiveHalvingPruner,min_resource:1"),
        ("CmaEsSampler", "HyperbandPruner,max_resource:4"),
    ],
)
def test_killed_commands_give_the_same_study(store: Path, sampler: str, pruner: str) -> None:
    """First a worker is killed, then the driver. The next driver starts while the worker ends."""
    arguments = (
        *("x=interval(0,1)", "sleep_s=interval(0.03,0.08)", "epochs=4", "sweep.n_trials=12"),
        f"+sweep.sampler={{_target_:optuna.samplers.{sampler}}}",
        f"+sweep.pruner={{_target_:optuna.pruners.{pruner}}}",
    )
    code, out = engine.run(*arguments, "sweep.name=whole", store=store)
    assert code == 0, out
    parts = (*arguments, "sweep.name=parts")
    driver = engine.start(*parts, store=store)
    try:
        engine.wait_for(lambda: engine.n_done(engine.trials(store, "parts")) >= 2)
        engine.workers(driver)[0].kill()
        engine.wait_for(lambda: engine.n_done(engine.trials(store, "parts")) >= 6)
        driver.kill()
        code, out = engine.run(*parts, store=store)
        assert code == 0, out
    finally:
        engine.end(driver)
    found = engine.trials(store, "parts")
    assert sum(storage.REPLACED in trial.user_attrs for trial in found) >= 1
    assert outcome(found) == outcome(engine.trials(store, "whole"))
