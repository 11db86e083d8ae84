"""Register dataclasses as schemas for the files under conf/."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from hydra.core.config_store import ConfigStore

T = TypeVar("T")


@dataclass_transform(field_specifiers=(field,))
def schema(cls: type[T]) -> type[T]:
    """Make a class a dataclass, and register it as the schema `/schema/<name without "Config">`.

    Files under conf/ name it in their defaults list. Hydra then checks their keys and types.
    """
    node = dataclass(cls)
    name = cls.__name__.removesuffix("Config").lower() or "config"
    ConfigStore.instance().store(
        group="schema", name=name, node=node, provider="mnist_sweep", replace=True
    )
    return node
