"""Settings of a dataset."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.schema import schema


@dataclass
class AffineConfig:
    degrees: float = 10.0  # rotation in -degrees..degrees
    scale: float = 0.1  # size in 1-scale..1+scale
    shift_px: float = 2.0  # shift in pixels, both axes


@dataclass
class ExpectedConfig:
    """Published facts about a dataset, for the data check. null: unknown, not checked."""

    train: int | None = None  # number of images
    test: int | None = None
    shape: tuple[int, int, int] | None = None  # (C, H, W)


@schema
class DataConfig:
    name: str = MISSING
    root: str = "${oc.env:MNIST_SWEEP_DATA,data}"  # folder of all datasets
    source: dict[str, Any] = field(default_factory=dict)  # _target_(root, ...) -> data.Arrays
    classes: list[str] | None = None  # class names in label order; null: 0, 1, 2, ...
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)
    on_missing: Literal["embedded", "error"] = "error"  # "embedded" (MNIST only): 5,000 images
    batch_size: int = 64
    val_size: int = 5000  # images held out of the training set for validation, stratified
    train_size: int | None = None  # images used for training, stratified; null: all that are left
    split_seed: int = "${seed}"  # type: ignore[assignment]  # an interpolation
    augment: Literal["none", "affine"] = "none"
    affine: AffineConfig = field(default_factory=AffineConfig)
