"""Settings of the optimizer, the schedule and the trainer."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.schema import schema

# Metrics of an epoch; `objective` names one of them.
EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


@schema
class AdamConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@schema
class SGDConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


@schema
class SchedulerConfig:
    interval: Literal["step", "epoch", "objective"] = "epoch"  # what its step() follows
    total_steps_as: str | None = None  # the factory's argument for the steps of the whole run
    factory: dict[str, Any] | None = None  # _target_ and arguments; null: constant learning rate


@dataclass
class EarlyStoppingConfig:
    patience: int | None = None  # epochs without a better objective; null: never stop early
    min_delta: float = 0.0


@schema
class TrainerConfig:
    max_epochs: int = 10
    max_minutes: float | None = None  # of training; the epoch at hand is cut short
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False  # on a GPU a whole step is one launch
    grad_clip: float | None = None  # largest norm of the whole gradient
    label_smoothing: float = 0.0
    ema_decay: float | None = None  # weights averaged over the steps are validated, kept and saved
    micro_batch_size: int | None = None  # images of a pass; the gradients of a batch add up
    skip_easiest: float = 0.0  # share of a batch, of smallest loss, without a backward pass
    resize_from: float = 1.0  # height and width in the first epoch, as a share of the whole ...
    resize_epochs: float = 0.5  # ... which they reach after this share of the epochs
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    resume: str | None = None  # directory of the run to go on with
