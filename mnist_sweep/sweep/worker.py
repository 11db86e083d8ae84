"""The loop of a worker: ask for a trial, compose its configuration, run it, tell the result."""

import _thread
import importlib
import inspect
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.common import processes, signals
from mnist_sweep.sweep import samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.hydra_internals import job_error
from mnist_sweep.sweep.optuna_internals import frozen, record_heartbeat
from mnist_sweep.sweep.space import Space
from mnist_sweep.sweep.study import DONE, count, get_trials
from mnist_sweep.sweep.trial import CURRENT, Trial

log = logging.getLogger(__name__)

WAIT_S = 0.3  # between two looks while other workers run the last trials
MARK_S = 4  # for the driver to mark an interrupted sweep; shorter than worker_pool.END_S
HANG_S = 10  # for a trial to obey its time limit before its process is ended
MAX_DUPLICATES = 50  # in a row, after which the space counts as exhausted


@dataclass(frozen=True)
class Plan:
    """The driver's decisions, the same for all workers."""

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
    cwd: str
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


def stop(study: optuna.Study, plan: Plan, why: str) -> None:
    """Ask all workers of this call to stop."""
    study.set_user_attr(f"stop {plan.invocation}", why)


def stop_reason(study: optuna.Study, plan: Plan) -> str | None:
    reason: str | None = study.user_attrs.get(f"stop {plan.invocation}")
    return reason


class StudyTrial(Trial):
    """A trial of an Optuna study."""

    def __init__(self, trial: optuna.Trial, plan: Plan) -> None:
        self.number, self.sweep, self.tags = trial.number, plan.study_name, plan.tags
        resume = trial.user_attrs.get(storage.RESUME)
        # the checkpoint may be on a host whose disk is not shared
        if resume and storage.has_checkpoint(resume, plan.settings):
            self.resume_from = Path(resume)
        self.pruned = False
        self.summary: dict[str, float] = {}
        self._trial, self._metrics = trial, plan.metrics

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        if len(self._metrics) == 1:  # Optuna cannot prune with several objectives
            self._trial.report(metrics[self._metrics[0]], step)
            self.pruned = self._trial.should_prune() and not final
        return self.pruned

    def finish(self, summary: Mapping[str, float]) -> None:
        self.summary = dict(summary)
        self._trial.set_user_attr(storage.SUMMARY, self.summary)


class Heartbeat(threading.Thread):
    """Beats for one trial. Interrupts it if the sweep stops, the driver dies or its time is up."""

    def __init__(self, trial: optuna.Trial, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.trial, self.plan = trial, plan
        self.timed_out = False
        self._over = threading.Event()
        self._started_at = time.monotonic()
        self._interrupted = False

    def __enter__(self) -> "Heartbeat":
        # at once: other hosts never consider a trial dead that has no heartbeat
        record_heartbeat(self.trial)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()

    def settle(self) -> None:
        """Stop interrupting the trial."""
        self._over.set()
        self.join()

    def run(self) -> None:
        interval = min(2.0, self.plan.settings.grace_s / 4)
        while not self._over.wait(interval):
            try:
                record_heartbeat(self.trial)
                self._check()
            except (
                Exception
            ) as error:  # the next heartbeat makes up for one lost to a busy database
                log.warning("heartbeat of trial %d: %s", self.trial.number, error)

    def _check(self) -> None:
        study, limit = self.trial.study, self.plan.settings.trial_timeout_s
        age = time.monotonic() - self._started_at
        if limit is not None and age > limit:
            self.timed_out = True
            self._interrupt()
            if age > limit + HANG_S:  # it hangs in code that handles no signals
                storage.fail(study, frozen(self.trial), _timeout_text(limit))
                os._exit(1)
        elif stop_reason(study, self.plan) == storage.INTERRUPTED or processes.is_dead(
            self.plan.driver
        ):
            self._interrupt()

    def _interrupt(self) -> None:
        if not self._interrupted and not self._over.is_set():
            self._interrupted = True
            _thread.interrupt_main()


class Worker:
    """Runs trials until the budget is used up. A launcher gets it in place of the task function."""

    def __init__(
        self,
        plan: Plan,
        task_function: TaskFunction,
        hydra_context: HydraContext,
        loader: ConfigLoader,
        config: DictConfig,
    ) -> None:
        self.plan, self.task_function, self.config = plan, task_function, config
        self.hydra_context = hydra_context
        self.loader = loader  # of the sweep's own copy of the configuration

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the task function by name: cloudpickle cannot pickle its module's globals."""
        state, function = dict(self.__dict__), self.task_function
        if getattr(function, "__module__", "__main__") != "__main__":
            state["task_function"] = (function.__module__, function.__qualname__)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["task_function"], tuple):
            module, name = state["task_function"]
            state["task_function"] = inspect.unwrap(getattr(importlib.import_module(module), name))
        self.__dict__.update(state)

    def __call__(self, _worker_config: DictConfig) -> int:
        """Run trials until the budget is used up; return how many."""
        os.chdir(self.plan.cwd)  # Ray's workers start elsewhere
        log.info("worker %d: %s", os.getpid(), _visible_devices())
        study = self._load_study()
        n_run = 0
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signals.obey)  # Ray and a shell's & leave it ignored
        with signals.obeyed():
            while (trial := self._next_trial(study)) is not None:
                self._run(study, trial)
                n_run += 1
        return n_run

    def _load_study(self) -> optuna.Study:
        url = storage.storage_url(self.config.sweep.storage, self.config.store)
        return optuna.load_study(
            study_name=self.plan.study_name,
            storage=storage.open_storage(url, self.plan.settings.grace_s),
            sampler=samplers.make_sampler(self.plan.settings),
            pruner=samplers.make_pruner(self.plan.settings),
        )

    def mark_interrupted(self) -> None:
        """Called by the driver before it ends the workers, so that no interrupted trial is a death."""
        stop(self._load_study(), self.plan, storage.INTERRUPTED)

    def _next_trial(self, study: optuna.Study) -> optuna.Trial | None:
        """A trial within the budget; None if the budget is used up or the sweep was stopped."""
        plan, settings = self.plan, self.plan.settings
        while not processes.is_dead(plan.driver):
            storage.reap(study, settings)
            trials = get_trials(study)
            n_failed, n_finished = len(plan.failed(trials)), plan.finished(trials)
            if n_failed > settings.max_failure_rate * plan.n_trials:
                stop(study, plan, f"{n_failed} trials failed (sweep.max_failure_rate)")
            if stop_reason(study, plan) or n_finished >= plan.n_trials:
                return None
            if n_finished + plan.running(trials) >= plan.n_trials:
                time.sleep(WAIT_S)  # one of the running trials may die
                continue
            if plan.grid is not None and not count(trials, TrialState.WAITING):
                lock = plan.directory / "grid.lock"
                storage.enqueue_grid(study, plan.grid, plan.failed_before, lock)
            trial = study.ask()
            if not self._is_surplus(study, trial):
                return trial
            trial.set_user_attr(storage.REPLACED, storage.SURPLUS)
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _is_surplus(self, study: optuna.Study, trial: optuna.Trial) -> bool:
        """Whether trials with smaller numbers use up the budget. This is exact without a lock."""
        alive = [t for t in get_trials(study) if t.state is not TrialState.FAIL]
        earlier = [t for t in alive if t.number < trial.number]
        if self.plan.grid is None:
            return len(earlier) >= self.plan.n_trials
        key = trial.user_attrs.get(storage.GRID)
        # a trial without a point was asked for while another worker took the last of the queue
        return key not in self.plan.grid or any(
            t.user_attrs.get(storage.GRID) == key for t in earlier
        )

    def _run(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Run one trial to exactly one final state."""
        plan, ret, handle = self.plan, None, StudyTrial(trial, self.plan)
        with Heartbeat(trial, plan) as heartbeat:
            try:
                trial.set_user_attr(storage.WORKER, processes.process_identity())
                trial.set_user_attr(storage.INVOCATION, plan.invocation)
                config = self._compose(trial)
                handle.params = trial.params  # known now
                if config is None:
                    trial.set_user_attr(storage.REPLACED, storage.DUPLICATE)
                    study.tell(trial, state=TrialState.FAIL)
                    return
                ret = self._run_job(config, handle)
                heartbeat.settle()
            except (KeyboardInterrupt, SystemExit):
                with signals.ignored():
                    if ret is not None:  # the signal came as the trial ended
                        self._tell(study, trial, handle, ret)
                    elif heartbeat.timed_out:
                        self._fail(study, trial, _timeout_text(plan.settings.trial_timeout_s))
                    else:
                        self._release(study, trial)
                if not heartbeat.timed_out:
                    raise
            except Exception as error:  # the composition failed: this point makes no configuration
                self._fail(study, trial, f"{type(error).__name__}: {error}")
            else:
                self._tell(study, trial, handle, ret)

    def _release(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Queue an interrupted trial again. If nobody stops the sweep, the interruption is a death."""

        def is_stopping() -> bool:
            return bool(stop_reason(study, self.plan)) or processes.is_dead(self.plan.driver)

        # Ctrl-C reaches the workers before the driver marks the sweep
        if storage.wait_until(is_stopping, MARK_S):
            storage.requeue(study, frozen(trial), storage.INTERRUPTED, self.plan.settings)
        else:
            storage.count_death(study, frozen(trial), self.plan.settings)

    def _compose(self, trial: optuna.Trial) -> DictConfig | None:
        """The trial's configuration; None if its point was tried before and duplicates are skipped."""
        plan = self.plan
        point = plan.space.suggest(trial, self.config)
        if plan.settings.duplicates == "skip" and self._was_tried(trial):
            return None
        overrides = [*plan.space.fixed, *(f"{name}={value}" for name, value in point.items())]
        config = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = f"{plan.study_name}-{trial.number}"
            config.hydra.job.num = trial.number
            config.hydra.sweep.dir = str(plan.directory)
        trial.set_user_attr(storage.DIRECTORY, str(plan.directory / str(trial.number)))
        return config

    def _was_tried(self, trial: optuna.Trial) -> bool:
        earlier = [t for t in get_trials(trial.study) if t.number < trial.number]
        recent = [t.user_attrs.get(storage.REPLACED) for t in earlier[-MAX_DUPLICATES:]]
        if recent == [storage.DUPLICATE] * MAX_DUPLICATES:
            stop(trial.study, self.plan, f"the last {MAX_DUPLICATES} points were duplicates")
        return any(t.state in DONE and t.params == trial.params for t in earlier)

    def _run_job(self, config: DictConfig, handle: StudyTrial) -> JobReturn:
        token = CURRENT.set(handle)
        hydra_before: Any = HydraConfig.instance().cfg
        try:
            return run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        finally:  # an interrupt early in run_job skips its own restoring
            HydraConfig.instance().cfg = hydra_before
            CURRENT.reset(token)
            if hydra_before is not None:
                configure_log(
                    hydra_before.hydra.job_logging,
                    hydra_before.hydra.verbose,
                    execution_whitelist=self.hydra_context.execution_whitelist,
                )

    def _tell(
        self, study: optuna.Study, trial: optuna.Trial, handle: StudyTrial, ret: JobReturn
    ) -> None:
        if (error := job_error(ret)) is not None:
            self._fail(study, trial, f"{type(error).__name__}: {error}")
        elif handle.pruned:
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            try:
                values = self._values(handle, ret.return_value)
            except (KeyError, TypeError, ValueError) as error:
                known = ", ".join(handle.summary) or "the task's return value"
                self._fail(study, trial, f"no objective {error}; there are {known}")
                return
            if all(math.isfinite(value) for value in values):
                study.tell(
                    trial, values, skip_if_finished=True
                )  # another host may have given it up
            else:
                self._fail(study, trial, f"the objective is not finite: {values}")

    def _values(self, handle: StudyTrial, returned: Any) -> list[float]:
        """The objectives: several from the run's summary if it has one, else the returned values."""
        if not self.plan.settings.objectives or not handle.summary:
            many = returned if isinstance(returned, list | tuple) else [returned]
            return [math.nan if value is None else float(value) for value in many]
        return [handle.summary[name] for name in self.plan.metrics]

    def _fail(self, study: optuna.Study, trial: optuna.Trial, why: str) -> None:
        log.error("trial %d failed: %s", trial.number, why)
        storage.fail(study, frozen(trial), why[:2000])


def _timeout_text(limit: float | None) -> str:
    return f"longer than sweep.trial_timeout_s={limit:g}"


def _visible_devices() -> str:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"GPU {gpus or 'none'}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads"
