"""What the driver has decided about a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.space import Space
from mnist_sweep.sweep.study import DONE, count


@dataclass(frozen=True)
class Plan:
    """The driver's decisions, the same for all coordinators of a sweep."""

    invocation: str  # identifies this call of the command
    # numbers of the trials that had failed before; comparing times would need synchronised clocks
    failed_before: frozenset[int]
    study_name: str
    space: Space
    n_trials: int
    grid: dict[str, dict[str, Any]] | None  # points by their key
    metrics: list[str]  # a name for each objective
    settings: DictConfig  # a SweepConfig, without `storage`
    directory: Path  # of the sweep, absolute
    driver: dict[str, str]  # processes.process_identity() of the driver
    tags: Mapping[str, str]  # for the record of every trial

    def finished(self, trials: list[FrozenTrial]) -> int:
        """Trials that use up the budget; in a grid also the points that failed in this call."""
        if self.grid is None:
            return count(trials, *DONE)
        counting = storage.of_points(trials, self.grid).values()
        return sum(t.state in DONE or self.is_failure(t) for t in counting)

    def running(self, trials: list[FrozenTrial]) -> int:
        if self.grid is not None:
            trials = list(storage.of_points(trials, self.grid).values())
        return count(trials, TrialState.RUNNING)

    def failed(self, trials: list[FrozenTrial]) -> list[FrozenTrial]:
        return [t for t in trials if self.is_failure(t)]

    def is_failure(self, trial: FrozenTrial) -> bool:
        """Whether the trial itself failed since this call began, under whichever driver."""
        return storage.own_failure(trial) and trial.number not in self.failed_before
