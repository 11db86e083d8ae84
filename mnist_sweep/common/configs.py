"""Compares and flattens configurations."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Keys that say how a command runs, not what it trains.
_COMMAND_KEYS = ("trainer.resume", "sweep")


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
    flat: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = str(list(node) if isinstance(node, tuple) else node)  # as YAML has it

    walk("", OmegaConf.to_container(cfg, resolve=True))
    return flat


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `prefixes` or below one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
