"""The loop of one worker: ask, compose, run, tell, until the budget of the study is filled."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_sweep.common import processes
from mnist_sweep.common import signals as interrupt
from mnist_sweep.sweep import samplers as search
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.space import Space
from mnist_sweep.sweep.study import DONE, count, trials
from mnist_sweep.training.reporting import REPORTER, TAGS, Reporter

log = logging.getLogger(__name__)

WAIT_S = 0.3  # between two looks while the last trials run elsewhere
MARK_S = 4  # for the driver to mark an interrupted sweep; shorter than processes.END_S
HANG_S = 10  # for a trial past its time to obey, before its process is ended
MAX_DUPLICATES = 50  # in a row, after which the space counts as exhausted


@dataclass(frozen=True)
class Plan:
    """What the driver decided, the same for all workers; pickled."""

    invocation: str  # names this call of the command
    # Numbers of trials; by time, the clocks of hosts would have to agree.
    failed_before: frozenset[int]
    study_name: str
    storage_url: str
    space: Space
    n_trials: int
    grid: dict[str, dict[str, Any]] | None  # its points by their key
    metrics: list[str]  # of the run's summary, one for each objective
    settings: DictConfig  # the node `sweep`
    directory: Path  # of the sweep, absolute
    cwd: str
    driver: dict[str, str]  # processes.process_identity
    tags: dict[str, str] = field(default_factory=dict)  # of every trial's run

    def finished(self, found: list[FrozenTrial]) -> int:
        """Trials that fill the budget; of a grid, points, and a failure in this call is final too."""
        if self.grid is None:
            return count(found, *DONE)
        counting = storage.of_points(found, self.grid).values()
        return sum(t.state in DONE or self.is_failure(t) for t in counting)

    def running(self, found: list[FrozenTrial]) -> int:
        of_mine = found if self.grid is None else storage.of_points(found, self.grid).values()
        return count(of_mine, TrialState.RUNNING)

    def failed(self, found: list[FrozenTrial]) -> list[FrozenTrial]:
        return [t for t in found if self.is_failure(t)]

    def is_failure(self, trial: FrozenTrial) -> bool:
        """Of its own making, since the call began, under whichever driver."""
        return storage.own_failure(trial) and trial.number not in self.failed_before


def stop(study: optuna.Study, plan: Plan, why: str) -> None:
    study.set_user_attr(f"stop {plan.invocation}", why)


def stop_reason(study: optuna.Study, plan: Plan) -> str | None:
    reason: str | None = study.user_attrs.get(f"stop {plan.invocation}")
    return reason


class TrialReporter(Reporter):
    """Tells Optuna of every epoch and asks it whether to prune."""

    def __init__(self, trial: Trial, metric: str, *, may_report: bool) -> None:
        self.trial, self.metric, self.may_report = trial, metric, may_report
        self.pruned = False
        self.summary: dict[str, float] = {}

    def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        if self.may_report:
            self.trial.report(metrics[self.metric], epoch)
            self.pruned = self.trial.should_prune()
        return self.pruned

    def finish(self, summary: Mapping[str, float]) -> None:
        self.summary = dict(summary)
        self.trial.set_user_attr(storage.SUMMARY, self.summary)


class Pulse(threading.Thread):
    """Beats for one trial, and interrupts it when the sweep stops, the driver dies or time is up."""

    def __init__(self, study: optuna.Study, trial: Trial, plan: Plan) -> None:
        super().__init__(daemon=True)
        self.study, self.trial, self.plan = study, trial, plan
        self.timed_out = False
        self._over = threading.Event()
        self._begun = time.monotonic()
        self._interrupted = False

    def __enter__(self) -> "Pulse":
        # at once: elsewhere a trial without any beat is never taken for dead
        self.study._storage.record_heartbeat(self.trial._trial_id)  # type: ignore[attr-defined]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.settle()

    def settle(self) -> None:
        """From here on it interrupts no more."""
        self._over.set()
        self.join()

    def run(self) -> None:
        interval = min(2.0, self.plan.settings.grace_s / 4)
        while not self._over.wait(interval):
            try:
                self.study._storage.record_heartbeat(self.trial._trial_id)  # type: ignore[attr-defined]
                self._look()
            except Exception as error:  # a beat lost to a busy database is made up by the next
                log.warning("heartbeat of trial %d: %s", self.trial.number, error)

    def _look(self) -> None:
        limit = self.plan.settings.trial_timeout_s
        age = time.monotonic() - self._begun
        if limit is not None and age > limit:
            self.timed_out = True
            self._interrupt()
            if age > limit + HANG_S:  # it hangs where no signal is heard
                storage.fail(self.study, _frozen(self.study, self.trial), _timeout_text(limit))
                os._exit(1)
        elif stop_reason(self.study, self.plan) == storage.INTERRUPTED or processes.is_dead(
            self.plan.driver
        ):
            self._interrupt()

    def _interrupt(self) -> None:
        if not self._interrupted and not self._over.is_set():
            self._interrupted = True
            _thread.interrupt_main()


class Worker:
    """Handed to a launcher in place of the task function; pickled once a worker."""

    def __init__(
        self,
        plan: Plan,
        task_function: TaskFunction,
        hydra_context: HydraContext,
        loader: ConfigLoader,
        config: DictConfig,
    ) -> None:
        self.plan, self.task_function, self.config = plan, task_function, config
        self.hydra_context, self.loader = hydra_context, loader  # loader: of the sweep's own conf/

    def __getstate__(self) -> dict[str, Any]:
        """The task function by name: by value, cloudpickle would choke on its module's globals."""
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
        """Run trials until there are none left; returns how many."""
        os.chdir(self.plan.cwd)  # Ray's workers start elsewhere
        log.info("worker %d: %s", os.getpid(), _what_it_sees())
        study = self._load_study()
        n_run = 0
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt.obey)  # Ray and a shell's & leave it ignored
        with interrupt.obeyed():
            while (trial := self._next_trial(study)) is not None:
                self._run(study, trial)
                n_run += 1
        return n_run

    def _load_study(self) -> optuna.Study:
        return optuna.load_study(
            study_name=self.plan.study_name,
            storage=storage.open_storage(self.plan.storage_url, self.plan.settings.grace_s),
            sampler=search.make_sampler(self.plan.settings),
            pruner=search.make_pruner(self.plan.settings),
        )

    def mark_interrupted(self) -> None:
        """In the driver, before it ends the workers: what they let go of then is no death."""
        stop(self._load_study(), self.plan, storage.INTERRUPTED)

    def _next_trial(self, study: optuna.Study) -> Trial | None:
        """A trial within the budget, or None when it is filled or the sweep was stopped."""
        plan, settings = self.plan, self.plan.settings
        while not processes.is_dead(plan.driver):
            storage.reap(study, settings.grace_s, settings.retries)
            found = trials(study)
            failed, finished = len(plan.failed(found)), plan.finished(found)
            if failed > settings.max_failure_rate * plan.n_trials:
                stop(study, plan, f"{failed} trials failed (sweep.max_failure_rate)")
            if stop_reason(study, plan) or finished >= plan.n_trials:
                return None
            if finished + plan.running(found) >= plan.n_trials:
                time.sleep(WAIT_S)  # one of them may die
                continue
            if plan.grid is not None and not count(found, TrialState.WAITING):
                lock = plan.directory / "grid.lock"
                storage.enqueue_grid(study, plan.grid, plan.failed_before, lock)
            trial = study.ask()
            if not self._is_surplus(study, trial):
                return trial
            trial.set_user_attr(storage.REPLACED, storage.SURPLUS)
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _is_surplus(self, study: optuna.Study, trial: Trial) -> bool:
        """Exact without a lock: of several that asked at once, the smaller numbers have the budget."""
        alive = [t for t in trials(study) if t.state is not TrialState.FAIL]
        earlier = [t for t in alive if t.number < trial.number]
        if self.plan.grid is None:
            return len(earlier) >= self.plan.n_trials
        key = trial.user_attrs.get(storage.GRID)
        # without one it was asked for as another worker took the last of the queue
        return key not in self.plan.grid or any(
            t.user_attrs.get(storage.GRID) == key for t in earlier
        )

    def _run(self, study: optuna.Study, trial: Trial) -> None:
        """Run one trial to exactly one final state."""
        plan, ret = self.plan, None
        with Pulse(study, trial, plan) as pulse:
            try:
                trial.set_user_attr(storage.WORKER, processes.process_identity())
                trial.set_user_attr(storage.INVOCATION, plan.invocation)
                config = self._compose(trial)
                if config is None:
                    trial.set_user_attr(storage.REPLACED, storage.DUPLICATE)
                    study.tell(trial, state=TrialState.FAIL)
                    return
                reporter = TrialReporter(trial, config.objective, may_report=len(plan.metrics) == 1)
                ret = self._run_job(trial, config, reporter)
                pulse.settle()
            except (KeyboardInterrupt, SystemExit):
                with interrupt.ignored():
                    if ret is not None:  # it came as the trial ended
                        self._tell(study, trial, reporter, ret)
                    elif pulse.timed_out:
                        self._fail(study, trial, _timeout_text(plan.settings.trial_timeout_s))
                    else:
                        self._let_go(study, trial)
                if not pulse.timed_out:
                    raise
            except Exception as error:  # of the composition: a point that makes no configuration
                self._fail(study, trial, f"{type(error).__name__}: {error}")
            else:
                self._tell(study, trial, reporter, ret)

    def _let_go(self, study: optuna.Study, trial: Trial) -> None:
        """Give back a trial that was interrupted; where nobody stops the sweep that is a death."""

        def is_stopping() -> bool:
            return bool(stop_reason(study, self.plan)) or processes.is_dead(self.plan.driver)

        # Ctrl-C reaches the workers before the driver says so
        if storage.wait_until(is_stopping, MARK_S):
            storage.give_back(study, _frozen(study, trial), storage.INTERRUPTED)
        else:
            storage.count_death(study, _frozen(study, trial), self.plan.settings.retries)

    def _compose(self, trial: Trial) -> DictConfig | None:
        """The trial's configuration; None for a point that was tried before, if those are skipped."""
        plan = self.plan
        drawn = plan.space.suggest(trial, self.config)
        if plan.settings.duplicates == "skip" and self._was_tried(trial):
            return None
        overrides = [*plan.space.fixed, *(f"{name}={value}" for name, value in drawn.items())]
        resume = trial.user_attrs.get(storage.RESUME)
        if resume and (Path(resume) / "last.pt").exists():  # hosts need not share a store
            overrides.append(f"trainer.resume='{resume}'")
        config = self.loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = f"{plan.study_name}-{trial.number}"
            config.hydra.job.num = trial.number
            config.hydra.sweep.dir = str(plan.directory)
        trial.set_user_attr(storage.DIRECTORY, str(plan.directory / str(trial.number)))
        return config

    def _was_tried(self, trial: Trial) -> bool:
        earlier = [t for t in trials(trial.study) if t.number < trial.number]
        recent = [t.user_attrs.get(storage.REPLACED) for t in earlier[-MAX_DUPLICATES:]]
        if recent == [storage.DUPLICATE] * MAX_DUPLICATES:
            stop(trial.study, self.plan, f"the last {MAX_DUPLICATES} points were duplicates")
        return any(t.state in DONE and t.params == trial.params for t in earlier)

    def _run_job(self, trial: Trial, config: DictConfig, reporter: TrialReporter) -> JobReturn:
        tags = {**self.plan.tags, "sweep": self.plan.study_name, "trial": str(trial.number)}
        tokens = REPORTER.set(reporter), TAGS.set(tags)
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
            REPORTER.reset(tokens[0])
            TAGS.reset(tokens[1])
            if hydra_before is not None:
                configure_log(
                    hydra_before.hydra.job_logging,
                    hydra_before.hydra.verbose,
                    execution_whitelist=self.hydra_context.execution_whitelist,
                )

    def _tell(
        self, study: optuna.Study, trial: Trial, reporter: TrialReporter, ret: JobReturn
    ) -> None:
        if ret.status is not JobStatus.COMPLETED:
            error = ret._return_value
            self._fail(study, trial, f"{type(error).__name__}: {error}")
        elif reporter.pruned:
            study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            try:
                values = self._values(reporter, ret.return_value)
            except (KeyError, TypeError, ValueError) as error:
                known = ", ".join(reporter.summary) or "what the task returns"
                self._fail(study, trial, f"no objective {error}; there are {known}")
                return
            if all(math.isfinite(value) for value in values):
                study.tell(trial, values, skip_if_finished=True)  # given up on from elsewhere
            else:
                self._fail(study, trial, f"the objective is not finite: {values}")

    def _values(self, reporter: TrialReporter, returned: Any) -> list[float]:
        """The objectives, from the run's summary; of another task function, what it returned."""
        names = self.plan.metrics
        if not self.plan.settings.objectives or not reporter.summary:
            many = returned if isinstance(returned, list | tuple) else [returned]
            return [math.nan if value is None else float(value) for value in many]
        best = {name.removeprefix("best/"): v for name, v in reporter.summary.items()}
        best |= reporter.summary
        return [best[name] for name in names]

    def _fail(self, study: optuna.Study, trial: Trial, why: str) -> None:
        log.error("trial %d failed: %s", trial.number, why)
        storage.fail(study, _frozen(study, trial), why[:2000])


def _frozen(study: optuna.Study, trial: Trial) -> FrozenTrial:
    return study._storage.get_trial(trial._trial_id)


def _timeout_text(limit: float | None) -> str:
    return f"longer than sweep.trial_timeout_s={limit:g}"


def _what_it_sees() -> str:
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"GPU {gpus or 'none'}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads"
