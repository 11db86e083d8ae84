"""Builds objects from configuration nodes with a `_target_`."""

import inspect
import os
from functools import partial
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mnist_sweep.common.errors import UserError

# Only code under these names is run for a `_target_`; MNIST_SWEEP_TRUST adds the user's packages.
# Narrow, because the configuration of somebody else's run is read too: torch.load would run a pickle.
TRUSTED = (
    *("mnist_sweep.models.*", "mnist_sweep.data.*", "mnist_sweep.sources.*"),
    *("torch.nn.*", "torch.optim.*", "torchvision.models.*"),
    *("optuna.samplers.*", "optuna.pruners.*"),
)


def build(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of `node` with its arguments, `args`, and those of `kwargs` that it names.

    Raises:
        UserError: the target is not trusted, not found, or does not take its arguments.
    """
    factory = bind(node)
    named = inspect.signature(factory.func).parameters
    try:
        return factory(*args, **{key: value for key, value in kwargs.items() if key in named})
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot build {node._target_}: {error}") from error


def bind(node: DictConfig) -> "partial[Any]":
    """The `_target_` of `node` with its arguments, not called yet. Raises UserError like `build`."""
    target = str(node._target_)
    trusted = (*TRUSTED, *filter(None, os.environ.get("MNIST_SWEEP_TRUST", "").split(",")))
    try:
        bound = instantiate(node, _partial_=True, _convert_="all", _execution_whitelist_=trusted)
        assert isinstance(bound, partial)
        return bound
    except HydraException as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause.__cause__ or cause).split())
        if not any(target.startswith(pattern.rstrip("*")) for pattern in trusted):
            package = target.split(".", maxsplit=1)[0]
            reason = f"not trusted code; if you do trust it, set MNIST_SWEEP_TRUST={package}.*"
        raise UserError(f"cannot build {target}: {reason}") from error
