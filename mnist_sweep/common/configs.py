"""Reads, compares and flattens configurations."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import MISSING, DictConfig, OmegaConf

from mnist_sweep.common.errors import UserError, one_line

# Keys that say how a command runs, not what it trains.
_COMMAND_KEYS = ("trainer.resume", "sweep")
MAX_VALUES = 10_000  # of a recorded configuration; those of this package have about 100
_OWN_VARIABLE = r"\$\{oc\.env:MNIST_SWEEP_\w+(,[^${}]*)?\}"


def read_config(path: Path) -> DictConfig:
    """Read the configuration that a run recorded. Raises UserError if the file contains none."""
    try:
        with path.open("rb") as file:
            # a few lines of references to references would unfold to gigabytes; Hydra writes none
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(file)):
                raise ValueError("it has YAML aliases")
        cfg = OmegaConf.load(path)
    except Exception as error:  # YAML and OmegaConf raise many kinds for a damaged file
        reason = one_line(error, 200)
        raise UserError(f"{path} is not a configuration: {reason}") from error
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{path} is not a configuration: expected key: value")
    return cfg


def plain_node(cfg: DictConfig | dict[str, Any], key: str, origin: object) -> DictConfig:
    """Return the resolved node `key` of a recorded configuration, which may be anybody's.

    References to other keys are resolved, and so are the variables MNIST_SWEEP_*. Other resolvers are
    not: `${oc.env:...}` would read this user's environment into, for example, a file name.

    Args:
        origin: what recorded the configuration, for the error.

    Raises:
        UserError: there is no such node, or it does not resolve.
    """
    try:
        raw = OmegaConf.to_container(cfg) if isinstance(cfg, DictConfig) else cfg
        _check_size(raw)
        plain = OmegaConf.create(_without_resolvers(raw))
        node = OmegaConf.to_container(plain[key], resolve=True, throw_on_missing=True)
    except Exception as error:  # OmegaConf and its grammar raise many kinds
        reason = one_line(error, 200)
        raise UserError(f"{origin}: its configuration has no usable `{key}`: {reason}") from error
    if not isinstance(node, dict):
        raise UserError(f"{origin}: its configuration has no usable `{key}`: expected key: value")
    return OmegaConf.create(node)


def _check_size(node: Any) -> None:
    """Raise ValueError if a configuration has too many values, or contains itself."""
    n_values, left = 0, [node]
    while left:
        n_values, value = n_values + 1, left.pop()
        if n_values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value


def _without_resolvers(node: Any) -> Any:
    """Replace each text that calls a resolver, as in ${name:...}, by the mark of a missing value."""
    if isinstance(node, dict):
        return {key: _without_resolvers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_resolvers(value) for value in node]
    calls = isinstance(node, str) and re.search(r"\$\{.*:", node, re.DOTALL)
    return MISSING if calls and not re.fullmatch(_OWN_VARIABLE, node) else node


def differences(old: DictConfig, new: DictConfig, may_change: Iterable[str]) -> list[str]:
    """List the settings that differ, as "key: old -> new".

    Args:
        may_change: keys to leave out, each with all keys below it. `trainer.resume` and `sweep` are
            always left out.
    """
    ignored = (*_COMMAND_KEYS, *may_change)
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key) and not is_under(key, ignored)
    ]


def flatten(cfg: DictConfig) -> dict[str, str]:
    """Return the resolved configuration as {dotted key: value}."""
    return flatten_tree(OmegaConf.to_container(cfg, resolve=True))


def flatten_tree(tree: Any) -> dict[str, str]:
    """Return a tree of dictionaries as {dotted key: value}."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = str(list(node) if isinstance(node, tuple) else node)  # as YAML has it

    walk("", tree)
    return flat


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `prefixes` or below one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
