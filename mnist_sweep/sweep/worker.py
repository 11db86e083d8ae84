"""The loop of a worker: receive a trial, compose its configuration, run it, send the result.

A worker knows its coordinator and nothing of the study: it imports neither Optuna nor SQLAlchemy.
"""

import importlib
import inspect
import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mnist_sweep.common import signals
from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.composer import Composer
from mnist_sweep.sweep.hydra_internals import job_error
from mnist_sweep.sweep.trial import CURRENT, Trial

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """A trial for a worker."""

    number: int
    params: Mapping[str, Any]  # what varies
    overrides: list[str]  # of the whole configuration
    resume_from: str | None  # directory of an earlier attempt, which may be on another host


@dataclass(frozen=True)
class Result:
    """How a trial ended. Without an error, and neither pruned nor interrupted, it is complete."""

    values: list[float] | None = None  # one for each objective; None: the task has none
    error: str | None = None
    pruned: bool = False
    interrupted: bool = False  # by a signal, or because the task ended the process
    by_signal: bool = False
    summary: Mapping[str, float] = field(default_factory=dict)


class CoordinatorClient(Protocol):
    """A worker's way to its coordinator: `Channel` in one process, `PipeClient` across a pipe."""

    def next(self) -> Assignment | None:
        """Wait for the next trial; None at the end of the sweep."""

    def set_directory(self, directory: str) -> None:
        """Tell that the trial writes to a directory that is not named by its number."""

    def report(self, step: int, value: float, *, final: bool) -> bool:
        """Report the objective after a step; True: the trial should stop."""

    def tell(self, result: Result) -> bool:
        """Tell how the trial ended. False: it was interrupted, and the worker should end.

        A trial that has told its result and is interrupted then may tell again.
        """


class Job:
    """What all trials of a sweep have in common.

    Args:
        loader: of the sweep's own copy of the configuration.
        settings: of the sweep.
        is_grid: whether the sweep needs no objective.
        metrics: a name for each objective.
        tags: for the record of every trial.
    """

    def __init__(
        self,
        task_function: TaskFunction,
        hydra_context: HydraContext,
        loader: ConfigLoader,
        config: DictConfig,
        *,
        settings: DictConfig,
        is_grid: bool,
        directory: Path,
        metrics: list[str],
        tags: Mapping[str, str],
    ) -> None:
        self.task_function, self.hydra_context, self.config = task_function, hydra_context, config
        self.composer = Composer(loader, config)
        self.settings, self.is_grid = settings, is_grid
        self.directory, self.metrics, self.tags = directory, metrics, tags

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the task function by name: a copy of it would have its own classes and globals."""
        state, function = dict(self.__dict__), self.task_function
        module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
        copied = cloudpickle.dumps(function) if module in ("", "__main__") else None
        state["task_function"] = (module, name, _file_of(function), copied)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        module, name, file, copied = state["task_function"]
        if copied is None:
            function = inspect.unwrap(getattr(importlib.import_module(module), name))
        else:  # of the script, which this process may have imported
            function = inspect.unwrap(getattr(sys.modules["__main__"], name, None))  # type: ignore[arg-type]
            if function is None or _file_of(function) != file:
                function = cloudpickle.loads(copied)
        state["task_function"] = function
        self.__dict__.update(state)

    def values(self, metrics: Mapping[str, Any]) -> list[float]:
        """Pick the objectives out of metrics. Raises UserError if one is missing."""
        if self.settings.objective is None and not self.settings.objectives and len(metrics) == 1:
            return [float(value) for value in metrics.values()]
        if missing := [name for name in self.metrics if name not in metrics]:
            raise UserError(
                f"no objective {missing[0]}; there are {', '.join(metrics)}; set "
                f"{self.settings.key}.objective"
            )
        return [float(metrics[name]) for name in self.metrics]

    def compose(self, assignment: Assignment) -> DictConfig:
        config = self.composer.compose(assignment.overrides)
        with open_dict(config):
            config.hydra.job.id = f"{self.settings.name}-{assignment.number}"
            config.hydra.job.num = assignment.number
            config.hydra.sweep.dir = str(self.directory)
        return config


def _file_of(function: Any) -> str | None:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


class WorkerTrial(Trial):
    """The handle of a trial that a worker runs."""

    def __init__(self, assignment: Assignment, job: Job, coordinator: CoordinatorClient) -> None:
        self.number, self.sweep, self.tags = assignment.number, job.settings.name, job.tags
        self.params = assignment.params
        self.directory = job.directory / str(assignment.number)
        checkpoint, directory = job.settings.checkpoint, assignment.resume_from
        if directory and checkpoint and (Path(directory) / checkpoint).exists():
            self.resume_from = Path(directory)
        self.pruned = False
        self.summary: Mapping[str, float] = {}
        self.last: Mapping[str, float] = {}  # what was reported last
        self._coordinator, self._job = coordinator, job

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        self.last = metrics
        if len(self._job.metrics) == 1:  # Optuna cannot prune with several objectives
            value = self._job.values(metrics)[0]
            self.pruned = self._coordinator.report(step, value, final=final)
        return self.pruned

    def finish(self, summary: Mapping[str, float]) -> None:
        self.summary = {name: float(value) for name, value in summary.items()}


def run_trials(job: Job, coordinator: CoordinatorClient) -> int:
    """Run trials until the coordinator has no more; return how many.

    Raises:
        KeyboardInterrupt, SystemExit: a signal ended the worker, or the task exited.
    """
    n_run = 0
    while (assignment := coordinator.next()) is not None:
        handle = WorkerTrial(assignment, job, coordinator)
        try:
            goes_on = coordinator.tell(_run(job, assignment, handle, coordinator))
        except (KeyboardInterrupt, SystemExit) as error:
            by_signal = isinstance(error, KeyboardInterrupt | signals.Terminated)
            with signals.ignored():
                goes_on = coordinator.tell(Result(interrupted=True, by_signal=by_signal))
            if not goes_on:
                raise
        n_run += 1
    return n_run


def _run(
    job: Job, assignment: Assignment, handle: WorkerTrial, coordinator: CoordinatorClient
) -> Result:
    try:
        config = job.compose(assignment)
    except Exception as error:  # this point makes no configuration
        return _failure(handle, f"{type(error).__name__}: {error}")
    directory = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
    if directory != handle.directory:
        handle.directory = directory
        coordinator.set_directory(str(directory))
    ret = _run_job(job, config, handle)
    if (raised := job_error(ret)) is not None:
        return _failure(handle, f"{type(raised).__name__}: {raised}")
    if handle.pruned:
        return Result(pruned=True, summary=handle.summary)
    try:
        return Result(values=_values(job, handle, ret.return_value), summary=handle.summary)
    except UserError as error:
        return _failure(handle, str(error))


def _failure(handle: WorkerTrial, why: str) -> Result:
    log.error("trial %d failed: %s", handle.number, why)
    return Result(error=why[:2000], summary=handle.summary)


def _run_job(job: Job, config: DictConfig, handle: WorkerTrial) -> JobReturn:
    token = CURRENT.set(handle)
    hydra_before: Any = HydraConfig.instance().cfg
    try:
        return run_job(
            hydra_context=job.hydra_context,
            task_function=job.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    finally:  # an interrupt early in run_job skips its own restoring
        HydraConfig.instance().cfg = hydra_before
        CURRENT.reset(token)
        # so that the next messages do not go to this trial's log
        if hydra_before is None:
            log_to_stdout()
        else:
            configure_log(
                hydra_before.hydra.job_logging,
                hydra_before.hydra.verbose,
                execution_whitelist=job.hydra_context.execution_whitelist,
            )


def _values(job: Job, handle: WorkerTrial, returned: Any) -> list[float] | None:
    """The objectives: what the task returned or, if it returned nothing, what it reported last.

    Of several objectives, those in the run's summary come first.

    Returns:
        None if there are none.

    Raises:
        UserError: an objective is missing or not finite.
    """
    if len(job.metrics) > 1 and handle.summary:
        returned = handle.summary
    elif returned is None:
        returned = handle.last or None
    if returned is None:
        return None
    try:
        if isinstance(returned, Mapping):
            values = job.values(returned)
        else:
            many = returned if isinstance(returned, list | tuple) else [returned]
            values = [float(value) for value in many]
    except (TypeError, ValueError) as error:
        if job.is_grid and job.settings.objective is None:  # Hydra's basic sweeper ignores it too
            return None
        raise UserError(f"the task returned {returned!r}: expected numbers") from error
    if len(values) != len(job.metrics):
        raise UserError(f"the task returned {values}, expected {', '.join(job.metrics)}")
    if not all(math.isfinite(value) for value in values):
        raise UserError(f"the objective is not finite: {values}")
    return values


def log_to_stdout() -> None:
    """Log to stdout alone, in the format of Hydra's logs."""
    line = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"
    logging.basicConfig(format=line, level=logging.INFO, stream=sys.stdout, force=True)
