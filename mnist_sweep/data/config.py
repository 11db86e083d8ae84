"""Settings of a dataset."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.schema import schema


@dataclass
class AffineConfig:
    degrees: float = 10.0  # rotation in -degrees..degrees
    scale: float = 0.1  # size in 1-scale..1+scale
    shift_px: float = 2.0  # translation in pixels, both axes


@dataclass
class ExpectedConfig:
    """What is published of a dataset; null: not known."""

    train: int | None = None  # images
    test: int | None = None
    shape: tuple[int, int, int] | None = None  # (C, H, W)


@schema
class DataConfig:
    name: str = MISSING
    root: str = "${oc.env:MNIST_SWEEP_DATA,data}"
    source: dict[str, Any] = field(default_factory=dict)  # _target_(root, ...) -> data.Arrays
    classes: list[str] | None = None  # names in label order; null: 0, 1, 2, ...
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)
    on_missing: Literal["embedded", "error"] = "error"  # only MNIST has an embedded stand-in
    batch_size: int = 64
    val_size: int = 5000  # images held out of the training set, stratified
    train_size: int | None = None  # images left to train on, stratified; null: all
    split_seed: int = "${seed}"  # type: ignore[assignment]  # an interpolation
    augment: Literal["none", "affine"] = "none"
    affine: AffineConfig = field(default_factory=AffineConfig)
