"""Settings of a sweep, as the driver resolves them."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_sweep.sweep.config import SweepConfig, resolved


def sweep_settings(**changes: Any) -> DictConfig:
    """The settings of `sweep.*`, the defaults but for `changes`."""
    return resolved(OmegaConf.merge(OmegaConf.structured(SweepConfig), changes), "sweep")
