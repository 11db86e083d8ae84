"""Steps a learning-rate scheduler when its configuration says so."""

from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class Schedule:
    """The learning-rate schedule of a run.

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
