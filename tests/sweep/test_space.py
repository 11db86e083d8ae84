"""What a sweep varies, and the points it is given, without a process."""

from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep import samplers as search
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.space import Space, parse


def space(*arguments: str, **settings: Any) -> Space:
    return parse(OmegaConf.create({"space": {}, "when": {}, **settings}), list(arguments))


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
def test_interval_makes_a_search_be_its_numbers_whole_or_not(argument: str, is_grid: bool) -> None:
    assert space("y=1,2", argument).is_grid == is_grid
    assert space(argument, "x=3,4").is_grid  # the later one counts


def test_condition_of_a_parameter_that_is_not_there_is_refused() -> None:
    conditions = {"optimizer.momentun": {"optimizer": "sgd"}}
    with pytest.raises(UserError, match=r"momentun: no parameter .*'optimizer.momentum'"):
        space("optimizer.momentum=interval(0,1)", when=conditions)
    fixed = space("x=interval(0,1)", "x=2", when={"x": {"act": "ok"}})
    assert fixed.when == {}


def test_where_and_how_a_sweep_is_recorded_may_change() -> None:
    one = space("x=1,2", "tracking=none", "data.root=/a", "sweep.n_jobs=2")
    assert one.fingerprint() == space("x=1,2", "data.root=/b", "device=cpu").fingerprint()
    assert one.fingerprint() != space("x=1,2", "data.val_size=9").fingerprint()


@pytest.mark.parametrize("sampler", ["TPESampler", "RandomSampler", "CmaEsSampler"])
def test_no_point_is_drawn_twice_in_the_brackets_of_hyperband(sampler: str) -> None:
    target = {"_target_": f"optuna.samplers.{sampler}", "_partial_": True}
    settings = OmegaConf.create({"sampler": target, "seed": 3})
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=search.make_sampler(settings), pruner=pruner)
    for _ in range(14):
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        trial.report(x + y, 1)
        trial.should_prune()
        study.tell(trial, x + y)
    assert len({tuple(t.params.values()) for t in study.trials}) == 14


def test_study_of_an_earlier_version_goes_on() -> None:
    study = optuna.create_study()
    here = space("x=1,2", "tracking=none", "data.root=/a")
    stored = {**here.fingerprint(), "tracking": "none", "data.root": "/a"}
    study.set_user_attr("fingerprint", stored)
    storage.check_fingerprint(study, here.fingerprint(), extend=False)
    other = space("x=1,2", "data.val_size=9")
    with pytest.raises(UserError, match=r"data.val_size: not there -> 9"):
        storage.check_fingerprint(study, other.fingerprint(), extend=False)
