"""Builds objects from configuration nodes with a `_target_`."""

import inspect
import os
import pkgutil
from collections.abc import Iterator
from functools import partial
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep.common.errors import UserError, one_line

# What a `_target_` may name. The list is narrow because configurations of other people's runs are
# loaded too: a function of torch can read and run a file. MNIST_SWEEP_TRUST adds the user's packages.
TRUSTED_CLASSES = (
    *("mnist_sweep.models.*", "torch.nn.*", "torch.optim.*", "torchvision.models.*"),
    *("optuna.samplers.*", "optuna.pruners.*"),
)
TRUSTED_FUNCTIONS = (
    *(f"mnist_sweep.data.{s}" for s in ("embedded_mnist", "emnist", "idx_files", "image_folder")),
    *("mnist_sweep.sources.emnist", "mnist_sweep.sources.image_folder"),
)
# Read at import: a configuration can set variables for its job, and must not trust itself.
TRUSTED_BY_USER = tuple(filter(None, os.environ.get("MNIST_SWEEP_TRUST", "").split(",")))


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
    except (
        *(TypeError, ValueError, RuntimeError, AttributeError),
        *(ArithmeticError, MemoryError),
    ) as error:
        raise UserError(f"cannot build {node._target_}: {one_line(error)}") from error


def bind(node: DictConfig) -> "partial[Any]":
    """Return the `_target_` of `node` with its arguments bound. Raises UserError like `build`."""
    targets(node)  # Hydra calls the inner ones
    trusted = (*TRUSTED_CLASSES, *TRUSTED_FUNCTIONS, *TRUSTED_BY_USER)
    try:
        bound = instantiate(node, _partial_=True, _convert_="all", _execution_whitelist_=trusted)
        assert isinstance(bound, partial)
        return bound
    except HydraException as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause.__cause__ or cause).split())
        raise UserError(f"cannot build {node._target_}: {reason}") from error


def targets(node: DictConfig) -> list[Any]:
    """Return what each `_target_` of `node` names, at any depth, the outermost first.

    Raises:
        UserError: a target is not trusted or does not exist, or there is none.
    """
    try:
        names = list(_target_names(OmegaConf.to_container(node, resolve=True)))
    except OmegaConfBaseException as error:
        raise UserError(f"cannot build {node}: {str(error).splitlines()[0]}") from error
    if not isinstance(node.get("_target_"), str):
        raise UserError(f"expected a _target_ in {node}")
    return [_locate(name) for name in names]


def _target_names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _target_names(value)


def _locate(name: str) -> Any:
    """Return what a target names. Its parent modules are trusted, so importing them is safe."""
    by_user = _matches(name, TRUSTED_BY_USER)
    is_public = not any(part.startswith("_") for part in name.split("."))
    if not by_user and not (is_public and _matches(name, (*TRUSTED_CLASSES, *TRUSTED_FUNCTIONS))):
        package = name.split(".", maxsplit=1)[0]
        raise UserError(
            f"cannot build {name}: this code is not trusted; to trust it, set "
            f"MNIST_SWEEP_TRUST={package}.*"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"cannot build {name}: {error}") from error
    if not (by_user or inspect.isclass(found) or name in TRUSTED_FUNCTIONS or _is_builder(name)):
        raise UserError(f"cannot build {name}: expected a class")
    return found


def _is_builder(name: str) -> bool:
    """Whether a target is one of torchvision's functions that build a model."""
    if not name.startswith("torchvision.models."):
        return False
    from torchvision.models import list_models

    return name.rpartition(".")[2] in list_models()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )
