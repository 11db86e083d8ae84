"""The learning-rate schedule of a run."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_sweep.common.build import build
from mnist_sweep.common.errors import UserError


class Schedule:
    """Steps a learning-rate scheduler when its configuration says so.

    Args:
        scheduler: None keeps the learning rate constant.
        interval: when to step the scheduler: "step", "epoch", or "objective" for a
            ReduceLROnPlateau, which steps after every epoch with the objective's score.
    """

    def __init__(self, scheduler: LRScheduler | None, interval: str) -> None:
        self.scheduler, self.interval = scheduler, interval

    def after_step(self) -> None:
        """Call this after every optimizer step."""
        if self.scheduler is not None and self.interval == "step":
            self.scheduler.step()

    def after_epoch(self, score: float) -> None:
        """Call this after every epoch. A larger score is a better one."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(score)
        elif self.scheduler is not None and self.interval == "epoch":
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state))


def build_schedule(cfg: DictConfig, optimizer: Optimizer, total_steps: int) -> Schedule:
    """Build the schedule of the config group `scheduler` for a run of `total_steps` steps.

    Raises:
        UserError: the scheduler cannot be built, or would never step.
    """
    if cfg.factory is None:
        return Schedule(None, cfg.interval)
    length = {cfg.total_steps_as: total_steps} if cfg.total_steps_as else {}
    scheduler = build(cfg.factory, optimizer, **length)
    if cfg.interval == "objective" and not isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(
            f"scheduler.interval=objective: {cfg.factory._target_} would never step; expected step or "
            "epoch, or scheduler=plateau"
        )
    return Schedule(scheduler, cfg.interval)
