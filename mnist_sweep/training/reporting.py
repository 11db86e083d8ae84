"""What a run tells to its record, and to whoever asked for it. Light: imported before torch."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


class Tracker:
    """Where a run is recorded: nowhere."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """The figures of an epoch, or with the last one of the whole run."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """What the run is found by."""

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        """Keeps the files that `write` puts into the folder it is given."""

    def log_model(
        self, model: "nn.Module", example: "NDArray[np.float32]", classes: Sequence[str]
    ) -> None:
        """The model on the CPU, in eval mode, and two images [2, C, H, W] in 0..1."""


class Reporter:
    """Who asked for the run, hears of every epoch and may end it early: nobody."""

    def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of a finished epoch (from 1 on); True ends the run as pruned."""
        return False

    def finish(self, summary: Mapping[str, float]) -> None:
        """Takes the figures of the whole run."""


REPORTER: ContextVar[Reporter] = ContextVar("reporter", default=Reporter())
# Tags of the run's record.
TAGS: ContextVar[Mapping[str, str]] = ContextVar("tags", default={})
