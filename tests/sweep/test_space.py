"""Search spaces and the points drawn from them, in process."""

from typing import Any

import optuna
import pytest

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep import samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.space import Space, parse
from tests.helpers.settings import sweep_settings

MAY_CHANGE = sweep_settings(
    own_keys=["sweep"], may_change=["tracking", "device", "store", "data.root"]
)


def space(*arguments: str, **settings: Any) -> Space:
    return parse(sweep_settings(**settings), list(arguments))


@pytest.mark.parametrize(
    ("argument", "is_grid"),
    [
        ("x=1,2", True),
        ("x=range(1,9)", True),
        ("x=interval(0,1)", False),
        ("x=tag(log,interval(1e-4,1))", False),
        ("x=int(interval(8,64))", False),
    ],
)
def test_interval_makes_a_search_and_range_a_grid(argument: str, is_grid: bool) -> None:
    assert space("y=1,2", argument).is_grid == is_grid
    assert space(argument, "x=3,4").is_grid  # the later one counts


@pytest.mark.parametrize("values", ["0.0,1e17,0.1", "0,1e17,0.1", "0,1,1e-9"])
def test_range_of_too_many_numbers_is_refused(values: str) -> None:
    """Optuna's steps cannot express the first two, which would become lists of choices."""
    with pytest.raises(UserError, match="expected a range of at most 100,000 values"):
        space(f"x=range({values})")


def test_condition_of_an_unknown_parameter_is_refused() -> None:
    conditions = {"optimizer.momentun": {"optimizer": "sgd"}}
    with pytest.raises(UserError, match=r"momentun: not a parameter .*'optimizer.momentum'"):
        space("optimizer.momentum=interval(0,1)", when=conditions)
    fixed = space("x=interval(0,1)", "x=2", when={"x": {"act": "ok"}})
    assert fixed.when == {}


def test_tracking_and_device_may_change_on_resume() -> None:
    one = space("x=1,2", "tracking=none", "data.root=/a", "sweep.n_jobs=2")
    other = space("x=1,2", "data.root=/b", "device=cpu")
    assert one.fingerprint(MAY_CHANGE) == other.fingerprint(MAY_CHANGE)
    assert one.fingerprint(MAY_CHANGE) != space("x=1,2", "data.val_size=9").fingerprint(MAY_CHANGE)


@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler", "CmaEsSampler"])
def test_hyperband_brackets_draw_no_point_twice(sampler: str) -> None:
    target = {"_target_": f"optuna.samplers.{sampler}", "_partial_": True}
    settings = sweep_settings(sampler=target, seed=3)
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=samplers.make_sampler(settings), pruner=pruner)
    for _ in range(14):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.report(x + y, 1)
        trial.should_prune()
        study.tell(trial, x + y)
    assert len({tuple(t.params.values()) for t in study.trials}) == 14


def test_study_of_an_earlier_version_resumes() -> None:
    study = optuna.create_study()
    here = space("x=1,2", "tracking=none", "data.root=/a").fingerprint(MAY_CHANGE)
    study.set_user_attr("fingerprint", {**here, "tracking": "none", "data.root": "/a"})
    storage.check_fingerprint(study, here, MAY_CHANGE)
    other = space("x=1,2", "data.val_size=9").fingerprint(MAY_CHANGE)
    with pytest.raises(UserError, match=r"data.val_size: absent -> 9"):
        storage.check_fingerprint(study, other, MAY_CHANGE)
