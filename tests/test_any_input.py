"""Properties of input that no table can hold: any text is a configuration or a message in a line."""

import io
import math
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

import optuna
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep import app, config
from mnist_sweep.common.config_errors import explain
from mnist_sweep.common.configs import flatten
from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep import checks, samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.config import resolved
from mnist_sweep.sweep.space import parse
from tests.helpers.configs import composed
from tests.helpers.settings import sweep_settings

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
many = settings(max_examples=200, deadline=None, derandomize=True, database=None)

BASE = composed("search=tpe", "space=none")
KEYS = sorted(flatten(BASE))
# no argument of a process contains a zero byte, and the lone surrogates stand for broken UTF-8
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
# torch may flush subnormal numbers to zero in this process
floats = st.floats(allow_subnormal=False)
numbers = st.one_of(st.integers().map(str), floats.map(str))
values = st.one_of(texts, numbers, st.sampled_from(["", "null", "???", "[]", "{}", "true", "${x}"]))
overrides = st.builds(
    "{}{}={}".format, st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), values
)


def run(*arguments: str) -> tuple[int, str]:
    """Call `main` like the command line. Return the exit code and what it writes to stderr."""
    stderr, argv = io.StringIO(), sys.argv
    GlobalHydra.instance().clear()
    try:
        sys.argv = ["mnist_sweep", *arguments]
        with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
            app.main()
    except SystemExit as error:
        return int(error.code or 0), stderr.getvalue()
    finally:
        sys.argv = argv
    return 0, stderr.getvalue()


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    """Undo what `main` sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_FULL_ERROR", "1")
        yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@few
@given(st.one_of(texts, overrides))
def test_any_argument_is_shown_or_refused_in_a_line(argument: str) -> None:
    code, stderr = run("--cfg", "job", argument)
    assert code in (0, 2)
    assert len(stderr.splitlines()) == (1 if code else 0), stderr


@many
@given(st.dictionaries(st.sampled_from(KEYS), st.one_of(numbers, texts), min_size=1, max_size=3))
def test_any_values_are_checked_without_a_traceback(changed: dict[str, str]) -> None:
    cfg = BASE.copy()
    for key, value in changed.items():
        try:
            OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException as error:
            explain(error)
            return
    try:
        config.check(cfg)
    except UserError:
        return
    assert all(map(math.isfinite, numbers_in(OmegaConf.to_container(cfg, resolve=True))))


def numbers_in(node: Any) -> Iterator[float]:
    """Yield the numbers of a tree of dictionaries and lists."""
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from numbers_in(each)
    elif isinstance(node, int | float):
        yield node


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a database with its tables."""
    url = f"sqlite:///{tmp_path_factory.mktemp('any')}/optuna.db"
    storage.create_study(url, 60, "first", ["maximize"])
    return url


counts = st.one_of(st.none(), st.integers(-3, 40), st.integers())
shares = st.one_of(st.none(), floats, st.floats(-1, 2, allow_subnormal=False))
changes_of_a_sweep = st.fixed_dictionaries(
    {},
    optional={
        "n_trials": counts,
        "n_jobs": counts,
        "top_k": counts,
        "trials_per_gpu": counts,
        "retries": counts,
        "grace_s": counts,
        "seed": counts,
        "trial_timeout_s": shares,
        "max_failure_rate": shares,
        "name": texts,
        "checkpoint": texts,
        "sampler.n_startup_trials": counts,
        "sampler.n_ei_candidates": counts,
        "pruner.min_resource": counts,
        "pruner.reduction_factor": counts,
    },
)


@many
@given(changes_of_a_sweep)
def test_settings_of_a_sweep_are_refused_or_work(database: str, changed: dict[str, object]) -> None:
    cfg = BASE.copy()
    for key, value in changed.items():
        try:
            OmegaConf.update(cfg, f"sweep.{key}", value, force_add=True)
        except OmegaConfBaseException as error:
            explain(error)
            return
    try:
        checks.check_settings(cfg.sweep, "sweep")
        plan = resolved(cfg.sweep, "sweep")
        checks.rehearse(parse(plan, ["x=interval(0,1)"]), plan, cfg, ["maximize"])
    except UserError:
        return
    opened = storage.open_storage(database, plan.grace_s)
    sampler, pruner = samplers.make_sampler(plan), samplers.make_pruner(plan)
    study = optuna.create_study(storage=opened, sampler=sampler, pruner=pruner)
    trial = study.ask()
    trial.report(trial.suggest_float("x", 0, 1), 1)
    trial.should_prune()
    storage.reap(study, study.trials, plan)
    opened.engine.dispose()
    for key in ("n_trials", "n_jobs", "top_k", "trial_timeout_s"):
        assert plan[key] is None or plan[key] > 0
    assert math.isfinite(plan.max_failure_rate)


FORMS = (
    "{} choice({}) range({}) interval({}) tag(log,interval({})) int(interval({})) int(range({}))"
)
FORMS += " float(choice({})) shuffle({}) glob({})"
arguments = st.lists(st.one_of(numbers, st.sampled_from(["a", "true", "null", "'1'"])), max_size=4)
spaces = st.builds(
    lambda form, given: form.format(",".join(given)),
    st.sampled_from(FORMS.split()),
    arguments,
)


@many
@given(spaces)
def test_any_space_is_refused_or_gives_a_point(text: str) -> None:
    try:
        space = parse(sweep_settings(), [f"x={text}"])
    except (UserError, HydraException) as error:
        explain(error)
        return
    if space.is_grid:
        with suppress(UserError):  # too many points
            assert space.grid(BASE)
    study = optuna.create_study()
    point = space.suggest(study.ask(), BASE)
    assert set(point) == set(space.distributions)
    assert all(not isinstance(v, float) or math.isfinite(v) for v in point.values())
