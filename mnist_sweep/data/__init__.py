"""Datasets: read from a source, checked, split and batched.

`mnist_sweep.data.<source>` names a source in a configuration. They are imported when they are named,
because numpy would slow down the start of the command line.
"""

from typing import Any

_SOURCES = ("embedded_mnist", "emnist", "idx_files", "image_folder")


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from mnist_sweep.data import sources

    return getattr(sources, name)
