"""Settings of a dataset."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.rules import NOT_EMPTY, SEED, above, at_least
from mnist_sweep.common.schema import schema


@dataclass
class AffineConfig:
    degrees: Annotated[float, at_least(0)] = 10.0  # rotation in -degrees..degrees
    scale: Annotated[float, at_least(0).below(1)] = 0.1  # size in 1-scale..1+scale
    shift_px: Annotated[float, at_least(0)] = 2.0  # shift in pixels, both axes


@dataclass
class ExpectedConfig:
    """Published facts about a dataset, for the data check. null: unknown, not checked."""

    train: Annotated[int | None, above(0)] = None  # number of images
    test: Annotated[int | None, above(0)] = None
    shape: Annotated[tuple[int, int, int] | None, above(0)] = None  # (C, H, W)


@schema
class DataConfig:
    name: Annotated[str, NOT_EMPTY] = MISSING
    # folder of all datasets
    root: Annotated[str, NOT_EMPTY] = "${oc.env:MNIST_SWEEP_DATA,data}"
    source: dict[str, Any] = field(default_factory=dict)  # _target_(root, ...) -> data.Arrays
    # class names in label order; null: 0, 1, 2, ...
    classes: Annotated[list[str] | None, NOT_EMPTY] = None
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)
    on_missing: Literal["embedded", "error"] = "error"  # "embedded" (MNIST only): 5,000 images
    batch_size: Annotated[int, above(0)] = 64
    # images held out of the training set for validation, stratified
    val_size: Annotated[int, above(0)] = 5000
    # images used for training, stratified; null: all that are left
    train_size: Annotated[int | None, above(0)] = None
    split_seed: Annotated[int, SEED] = "${seed}"  # type: ignore[assignment]  # an interpolation
    augment: Literal["none", "affine"] = "none"
    affine: AffineConfig = field(default_factory=AffineConfig)
