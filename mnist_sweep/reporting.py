"""What a run tells to whoever asked for it. Light: imported before torch."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol


class Reporter(Protocol):
    """Who asked for the run: hears of every epoch and may end it early."""

    def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of a finished epoch (from 1 on); True ends the run as pruned."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """Takes the figures of the whole run."""


class NullReporter:
    def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        return False

    def finish(self, summary: Mapping[str, float]) -> None:
        pass


REPORTER: ContextVar[Reporter] = ContextVar("reporter", default=NullReporter())
# Tags of the run's record.
TAGS: ContextVar[Mapping[str, str]] = ContextVar("tags", default={})
