"""Settings of the optimizer, the schedule and the trainer."""

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.schema import schema

# Metrics of every epoch. The setting `objective` names one of them.
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
    interval: Literal["step", "epoch", "objective"] = "epoch"  # when to step the scheduler
    total_steps_as: str | None = None  # the factory's argument for the number of steps in the run
    factory: dict[str, Any] | None = None  # _target_ and arguments; null: constant learning rate


@dataclass
class EarlyStoppingConfig:
    patience: int | None = None  # epochs without a better objective; null: never
    min_delta: float = 0.0


@schema
class TrainerConfig:
    max_epochs: int = 10
    max_minutes: float | None = (
        None  # limit of the training time; may end in the middle of an epoch
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False  # launch a whole step at once; GPUs only
    grad_clip: float | None = None  # largest norm of the gradient of all parameters
    label_smoothing: float = 0.0
    ema_decay: float | None = None  # validate and save an average of the weights over the steps
    micro_batch_size: int | None = None  # images in one pass; accumulates the gradients of a batch
    skip_easiest: float = 0.0  # share of a batch without a backward pass: images of smallest loss
    resize_from: float = 1.0  # scale of the images' height and width in the first epoch
    resize_epochs: float = 0.5  # share of the epochs after which the images have their full size
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    resume: str | None = None  # directory of the run to resume
