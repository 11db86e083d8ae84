"""Builds objects from configuration nodes with a `_target_`."""

import inspect
import os
from functools import partial
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig

from mnist_sweep.common.errors import UserError

# A `_target_` may only name code in these modules; MNIST_SWEEP_TRUST adds the user's packages. The list
# is narrow because configurations of other people's runs are loaded too, and torch.load runs pickles.
TRUSTED = (
    *("mnist_sweep.models.*", "mnist_sweep.data.*", "mnist_sweep.sources.*"),
    *("torch.nn.*", "torch.optim.*", "torchvision.models.*"),
    *("optuna.samplers.*", "optuna.pruners.*"),
)


def build(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of `node` with the arguments in `node`, `args`, and suitable `kwargs`.

    A keyword argument is suitable if the target's signature names it.

    Raises:
        UserError: the target is not trusted, does not exist, or does not take the arguments.
    """
    factory = bind(node)
    parameters = inspect.signature(factory.func).parameters
    try:
        return factory(*args, **{key: value for key, value in kwargs.items() if key in parameters})
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot build {node._target_}: {reason}") from error


def bind(node: DictConfig) -> "partial[Any]":
    """Return the `_target_` of `node` with its arguments bound. Raises UserError like `build`."""
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
            reason = f"this code is not trusted; to trust it, set MNIST_SWEEP_TRUST={package}.*"
        raise UserError(f"cannot build {target}: {reason}") from error
