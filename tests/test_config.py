from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mnist_sweep import config
from mnist_sweep.common.build import bind, build
from mnist_sweep.common.configs import differences, flatten
from mnist_sweep.common.errors import UserError

CHOICES = sorted(
    path.relative_to(config.CONF_DIR)
    for path in config.CONF_DIR.rglob("*.yaml")
    if path.parent != config.CONF_DIR
)


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.CONF_DIR)):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra)


GROUPS = set(composed(hydra=True).hydra.runtime.choices)


@pytest.mark.parametrize("path", CHOICES, ids=str)
def test_every_choice_composes(path: Path) -> None:
    group, choice = path.parent.as_posix(), path.stem
    cfg = composed(f"{'' if group in GROUPS else '+'}{group}={choice}")
    config.check(cfg)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_every_choice_was_found() -> None:
    found = {path.parent.as_posix() for path in CHOICES}
    assert found >= {"model", "optimizer", "scheduler", "data", "trainer", "tracking"}
    assert {f"model/{m}.yaml" for m in ("simple", "deeper", "vgg")} <= set(map(str, CHOICES))


def test_check_collects_every_problem() -> None:
    cfg = composed("objective=val/f1", "seed=-1", "trainer.grad_clip=0", "optimizer.lr=0")
    with pytest.raises(UserError) as caught:
        config.check(cfg)
    for part in ("objective=val/f1", "seed=-1", "trainer.grad_clip=0", "optimizer.lr=0"):
        assert part in str(caught.value)


def test_seed_zero_is_a_seed() -> None:
    assert composed("seed=0").data.split_seed == 0
    assert composed("seed=7").data.split_seed == 7
    assert composed("seed=7", "data.split_seed=3").data.split_seed == 3


def test_differences_name_what_a_resumed_run_changed() -> None:
    old = composed("seed=1", "store=a", "tracking=none")
    new = composed("seed=1", "optimizer.lr=0.5", "store=b", "trainer.resume=c")
    assert differences(old, new, new.sweep.may_change) == ["optimizer.lr: 0.001 -> 0.5"]
    assert differences(old, new, ["optimizer", "tracking"]) == ["store: a -> b"]


def test_flatten_resolves_and_keeps_empty_values() -> None:
    flat = flatten(OmegaConf.create({"a": {"b": 1, "c": "${a.b}", "d": {}, "e": None}}))
    assert flat == {"a.b": "1", "a.c": "1", "a.d": "{}", "a.e": "None"}


def test_build_passes_only_what_the_target_names() -> None:
    node = OmegaConf.create({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3})
    assert build(node, bias=False, no_such_argument=1).bias is None


@pytest.mark.parametrize("extra", [{"no_such": 1}, {"in_features": "many"}])
def test_build_says_which_target_does_not_take_its_arguments(extra: dict[str, object]) -> None:
    node = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, **extra}
    with pytest.raises(UserError, match=r"cannot build torch\.nn\.Linear"):
        build(OmegaConf.create(node))


def test_bind_runs_only_trusted_code(monkeypatch: pytest.MonkeyPatch) -> None:
    node = OmegaConf.create({"_target_": "textwrap.dedent", "text": " a"})
    with pytest.raises(UserError, match=r"MNIST_SWEEP_TRUST=textwrap\.\*"):
        bind(node)
    monkeypatch.setenv("MNIST_SWEEP_TRUST", "textwrap.*")
    assert bind(node)() == "a"
