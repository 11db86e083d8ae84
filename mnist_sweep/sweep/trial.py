"""A task's handle to the trial that it runs for."""

from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any


class Trial:
    """Reports metrics to the sweep and says whether to stop. This base class is of no sweep.

    Attributes:
        number: the trial's number in its sweep; None outside of a sweep.
        sweep: name of the sweep; None outside of a sweep.
        directory: where the trial writes its files; None outside of a sweep.
        resume_from: directory of an interrupted attempt that left a checkpoint; None: start anew.
        params: what varies in the sweep, with this trial's values; empty outside of a sweep.
        tags: what the sweep's callbacks want on the record of every trial.
    """

    number: int | None = None
    sweep: str | None = None
    directory: Path | None = None
    resume_from: Path | None = None
    params: Mapping[str, Any] = {}
    tags: Mapping[str, str] = {}

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        """Report the metrics of a finished step (an epoch, from 1 on).

        Args:
            metrics: with several of them, the setting `objective` names the one to optimise.
            final: no step follows, so there is nothing left to prune.

        Returns:
            True if the trial is pruned and should stop here.

        Raises:
            UserError: the objective is not among the metrics.
        """
        return False

    def finish(self, summary: Mapping[str, float]) -> None:
        """Report the final figures of the run, which the leaderboard can show."""


CURRENT: ContextVar[Trial] = ContextVar("trial", default=Trial())


def current_trial() -> Trial:
    """The trial that this task runs for. Outside of a sweep its methods do nothing."""
    return CURRENT.get()
