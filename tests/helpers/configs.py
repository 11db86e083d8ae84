"""Compose configurations without starting the application."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mnist_sweep.config import CONF_DIR


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    """Return the application's configuration with `overrides`, and Hydra's own node if `hydra`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR)):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra)
