"""Configurations of trials are those that Hydra composes, whether they are copied or not."""

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.config import CONF_DIR
from mnist_sweep.sweep.composer import Composer, is_same

FIXED = ["data=mnist5k", "trainer=quick", "+optimizer.foreach=false"]


class CountingLoader:
    """A loader that counts what Hydra composes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self.loader, self.n_composed = loader, 0
        self.get_group_options = loader.get_group_options

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        self.n_composed += 1
        return self.loader.load_sweep_config(config, overrides)


@pytest.fixture(scope="module")
def hydra_parts() -> Iterator[tuple[ConfigLoader, DictConfig]]:
    with initialize_config_dir(str(CONF_DIR)):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield (
            hydra.config_loader,
            hydra.compose_config("config", FIXED, run_mode=RunMode.MULTIRUN),
        )


@pytest.mark.parametrize(
    ("trials", "n_composed"),
    [
        # the first two are composed: one to copy, one to compare with
        (
            [["optimizer.lr=0.1"], ["optimizer.lr=0.2"], ["optimizer.lr=1e-3"], ["optimizer.lr=1"]],
            2,
        ),
        ([["seed=1", "store=a"], ["seed=2", "store='b c'"], ["seed=2", "store=${x}"]], 2),
        ([["model=simple"], ["model=vgg"], ["model=simple"]], 3),
        ([["model=simple", "seed=1"], ["model=vgg", "seed=1"], ["model=vgg", "seed=2"]], 3),
        ([["model.head=[1]"], ["model.head=[1,2]"], ["model.head=[]"]], 3),
        ([["seed=1"], ["seed=2", "device=cpu"], ["seed=3", "device=cpu"]], 3),
        ([["++hydra.job.name=a", f"seed={i}"] for i in (1, 2, 3)], 2),
        ([["seed=1", f"hydra.job.name={name}"] for name in ("a", "b", "b")], 3),
        ([["scheduler={interval: step}", f"scheduler.interval={v}"] for v in ("epoch", "step")], 2),
        (
            [["optimizer.lr=0.1"], ["optimizer.lr=0.2"], ["model=vgg"], ["seed=1"], ["seed=2"]],
            4,
        ),
    ],
)
def test_trials_are_what_hydra_composes(
    hydra_parts: tuple[ConfigLoader, DictConfig], trials: list[list[str]], n_composed: int
) -> None:
    loader, config = hydra_parts
    counting = CountingLoader(loader)
    composer = Composer(counting, config)  # type: ignore[arg-type]
    for trial in trials:
        ours = composer.compose([*FIXED, *trial])
        hydras = loader.load_sweep_config(config, [*FIXED, *trial])
        assert is_same(ours, hydras)
        assert OmegaConf.is_struct(ours)
        assert ours.hydra.overrides == hydras.hydra.overrides
    assert counting.n_composed == n_composed


def test_copies_that_differ_are_not_used(
    hydra_parts: tuple[ConfigLoader, DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, config = hydra_parts
    counting = CountingLoader(loader)
    composer = Composer(counting, config)  # type: ignore[arg-type]
    monkeypatch.setattr("mnist_sweep.sweep.composer.is_same", lambda _one, _other: False)
    for lr in (1, 2, 3, 4):
        assert composer.compose([*FIXED, f"optimizer.lr={lr}"]).optimizer.lr == lr
    assert counting.n_composed == 4
