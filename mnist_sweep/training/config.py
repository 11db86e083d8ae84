"""Settings of the optimizer, the schedule and the trainer."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from omegaconf import MISSING

from mnist_sweep.common.rules import Rule, above, at_least
from mnist_sweep.common.schema import schema

# Metrics of every epoch. The setting `objective` names one of them.
EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
# Figures of a whole run that may be one of several objectives of a search.
RUN_METRICS = ("fit_s", "run_s", "n_parameters", "best_epoch")

# Rules of the arguments of optimizers and schedulers. The schemas leave `factory` open, and torch accepts
# a negative factor, which makes the learning rate negative.
TORCH_ARGUMENTS: dict[str, Rule] = {
    "optimizer.lr": above(0),
    "scheduler.factory.gamma": above(0),
    "scheduler.factory.factor": above(0).below(1),
    "scheduler.factory.step_size": above(0),
    "scheduler.factory.patience": at_least(0),
    "scheduler.factory.pct_start": at_least(0).at_most(1),
}


@schema
class AdamConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    betas: Annotated[tuple[float, float], at_least(0).below(1)] = (0.9, 0.999)
    eps: Annotated[float, at_least(0)] = 1e-8
    weight_decay: Annotated[float, at_least(0)] = 0.0


@schema
class SGDConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    momentum: Annotated[float, at_least(0).below(1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, at_least(0)] = 0.0


@schema
class SchedulerConfig:
    interval: Literal["step", "epoch", "objective"] = "epoch"  # when to step the scheduler
    total_steps_as: str | None = None  # the factory's argument for the number of steps in the run
    factory: dict[str, Any] | None = None  # _target_ and arguments; null: constant learning rate


@dataclass
class EarlyStoppingConfig:
    patience: Annotated[int | None, above(0)] = (
        None  # epochs without a better objective; null: never
    )
    min_delta: Annotated[float, at_least(0)] = 0.0


@schema
class TrainerConfig:
    max_epochs: Annotated[int, above(0)] = 10
    # limit of the training time; may end in the middle of an epoch
    max_minutes: Annotated[float | None, above(0)] = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False  # launch a whole step at once; GPUs only
    # largest norm of the gradient of all parameters
    grad_clip: Annotated[float | None, above(0)] = None
    label_smoothing: Annotated[float, at_least(0).below(1)] = 0.0
    # validate and save an average of the weights over the steps
    ema_decay: Annotated[float | None, above(0).below(1)] = None
    # images in one pass; accumulates the gradients of a batch
    micro_batch_size: Annotated[int | None, above(0)] = None
    # share of a batch without a backward pass: images of smallest loss
    skip_easiest: Annotated[float, at_least(0).below(1)] = 0.0
    # scale of the images' height and width in the first epoch
    resize_from: Annotated[float, above(0).at_most(1)] = 1.0
    # share of the epochs after which the images have their full size
    resize_epochs: Annotated[float, above(0).at_most(1)] = 0.5
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    resume: str | None = None  # directory of the run to resume
