"""Every file under conf/ composes, changes only its own part, and passes the checks."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mnist_sweep import config
from mnist_sweep.common.configs import differences, flatten
from mnist_sweep.common.errors import UserError
from tests.helpers.configs import composed

CHOICES = sorted(
    path.relative_to(config.CONF_DIR)
    for path in config.CONF_DIR.rglob("*.yaml")
    if path.parent != config.CONF_DIR
)
DEFAULT = flatten(composed())
GROUPS = set(composed(hydra=True).hydra.runtime.choices)
# Part of the configuration that a choice of this group may change; otherwise that of the same name.
PARTS = {"search": "sweep", "space": "sweep", "pruner": "sweep.pruner"}


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes(path: Path) -> None:
    group, choice = path.parent.as_posix(), path.stem
    cfg = composed(f"{'' if group in GROUPS else '+'}{group}={choice}")
    config.check(cfg)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_choices_include_the_main_groups() -> None:
    groups = {path.parent.as_posix() for path in CHOICES}
    assert groups >= {"model", "optimizer", "scheduler", "data", "trainer", "tracking"}
    assert {f"model/{m}.yaml" for m in ("simple", "deeper", "vgg")} <= set(map(str, CHOICES))


@pytest.mark.parametrize(
    "path", [p for p in CHOICES if p.parts[0] not in ("experiment", "hydra")], ids=str
)
def test_choice_changes_only_its_own_part(path: Path) -> None:
    cfg = flatten(composed(f"{path.parent.as_posix()}={path.stem}"))
    changed = {key for key in {*DEFAULT, *cfg} if DEFAULT.get(key) != cfg.get(key)}
    part = PARTS.get(path.parts[0], path.parts[0])
    assert {key for key in changed if key != part and not key.startswith(f"{part}.")} == set()


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_search_chooses_its_space_and_its_pruner(search: str) -> None:
    sweep = composed(f"search={search}").sweep
    assert sweep.space["data.batch_size"] == "choice(32, 64, 128, 256, 512)"
    assert sweep.pruner._target_ == "optuna.pruners.SuccessiveHalvingPruner"


def test_command_line_overrides_the_pruner_and_the_space_of_a_search() -> None:
    sweep = composed("search=tpe", "pruner=none", "space=none").sweep
    assert (sweep.pruner, sweep.space, sweep.n_trials) == (None, None, 30)


def test_check_collects_every_problem() -> None:
    cfg = composed("objective=val/f1", "seed=-1", "trainer.grad_clip=0", "optimizer.lr=0")
    with pytest.raises(UserError) as raised:
        config.check(cfg)
    for part in ("objective=val/f1", "seed=-1", "trainer.grad_clip=0", "optimizer.lr=0"):
        assert part in str(raised.value)


def test_seed_zero_is_a_seed() -> None:
    assert composed("seed=0").data.split_seed == 0
    assert composed("seed=7").data.split_seed == 7
    assert composed("seed=7", "data.split_seed=3").data.split_seed == 3


def test_differences_name_what_a_resumed_run_changed() -> None:
    old = composed("seed=1", "store=a", "tracking=none")
    new = composed("seed=1", "optimizer.lr=0.5", "store=b", "trainer.resume=c")
    assert differences(old, new, new.sweep.may_change) == ["optimizer.lr: 0.001 -> 0.5"]
