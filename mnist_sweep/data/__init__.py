"""Datasets: reading them from a source, checks, splits, augmentation, image files.

A configuration names a source as `mnist_sweep.data.<source>`. Sources are imported on first use,
because importing numpy would slow down the start of every command.
"""

from typing import Any

_LAZY = ("Arrays", "embedded_mnist", "emnist", "idx_files", "image_folder")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from mnist_sweep.data import sources

    return getattr(sources, name)
