"""Registers dataclasses as schemas that the files under conf/ start from."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from hydra.core.config_store import ConfigStore

T = TypeVar("T")


@dataclass_transform(field_specifiers=(field,))
def schema(cls: type[T]) -> type[T]:
    """A dataclass that files under conf/ start from, as /schema/<its name without Config>."""
    made = dataclass(cls)
    name = cls.__name__.removesuffix("Config").lower() or "config"
    ConfigStore.instance().store(
        group="schema", name=name, node=made, provider="mnist_sweep", replace=True
    )
    return made
