"""Configurations compared and flattened."""

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, OmegaConf


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """What is set otherwise in `new`, but for where it runs and is recorded: 'key: old -> new'."""
    free = ("trainer.resume", "trainer.max_minutes", "tracking.", "sweep.", "store", "data.root")
    was, now = flatten(old), flatten(new)
    return [
        f"{key}: {was.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key) and not key.startswith(free)
    ]


def flatten(cfg: DictConfig) -> dict[str, str]:
    """The resolved configuration as {dotted key: value}."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = str(list(node) if isinstance(node, tuple) else node)  # as in a file

    walk("", OmegaConf.to_container(cfg, resolve=True))
    return flat


def is_under(key: str, prefixes: Iterable[str]) -> bool:
    """Whether a dotted key is one of `prefixes` or below one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
