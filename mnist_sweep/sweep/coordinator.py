"""The one owner of a study in a process: gives out trials, takes their reports and results."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

import optuna
from omegaconf import DictConfig
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.trial import FrozenTrial, TrialState

from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.optuna_internals import (
    backend,
    begin,
    copy_pruner_records,
    frozen,
    read_trial,
    record_heartbeats,
)
from mnist_sweep.sweep.places import first_attempt
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.study import DONE, DatabaseError, count, get_trials
from mnist_sweep.sweep.worker import Assignment, Result

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_S = 1.0  # between two looks at the study for the display and for dead trials
WAIT_S = 0.3  # between two requests while other workers run the last trials
SETTLE_S = 4  # for the trials of interrupted workers to be queued again
REPORT_S = 1.0  # for a report to reach the study; a trial does not wait longer
MARK_S = 4.0  # for the driver to stop an interrupted sweep
HANG_S = 10.0  # for a trial to obey its time limit before its process is ended
NO_OBJECTIVE = (
    "a search needs a number to optimise: return it from the task, or report it with "
    "current_trial().report"
)
MAX_DUPLICATES = 50  # in a row, after which the space counts as exhausted


class Coordinator:
    """Owns the study for the workers of a process.

    Not thread-safe: `CoordinatorThread` calls all methods in one thread. Several coordinators share
    a study without a lock.

    Attributes:
        trials: of the study, as of the last look.
        stop_reason: why the sweep stops early; None: it does not.
        is_over: whether there are no more trials to give out.
        error: what made it stop, if that is no fault of a trial.
    """

    def __init__(self, study: optuna.Study, plan: Plan, config: DictConfig) -> None:
        self.study, self.plan, self.config = study, plan, config
        self.trials: list[FrozenTrial] = []
        self.stop_reason: str | None = None
        self.is_over = False
        self.error: BaseException | None = None
        self._n_duplicates = 0  # in a row
        self._running: dict[int, optuna.Trial] = {}
        self._owners: list[dict[str, Any]] = []  # of the trials that it gives out
        self._is_new = True  # it has given out no trial
        self._orphans_end = False  # workers of a driver that has died
        # of a retry with a checkpoint that has reported nothing: the attempts before
        self._earlier: dict[int, list[FrozenTrial]] = {}
        self._beat_at = self._ticked_at = self._listens_since = time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether the database is away."""
        patience = getattr(backend(self.study), "patience", None)
        return patience is not None and patience.waiting_for is not None

    def look(self) -> list[FrozenTrial]:
        """Read the trials, and stop if too many have failed."""
        self.trials, plan = get_trials(self.study), self.plan
        n_failed = len(plan.failed(self.trials))
        if n_failed > plan.settings.max_failure_rate * plan.n_trials:
            self.stop(f"{n_failed} trials failed ({plan.settings.key}.max_failure_rate)")
        return self.trials

    def stop(self, why: str) -> None:
        """Give out no more trials."""
        self.stop_reason = self.stop_reason or why
        self.is_over = True

    def next(self, worker: dict[str, str]) -> Assignment | None:
        """Give out a trial.

        Args:
            worker: the identity of the process that will run it.

        Returns:
            None if there is nothing to run now. A running trial may still die and come back, unless
            `is_over`.
        """
        try:
            return self._give_out(worker)
        except UpdateFinishedTrialError:  # after an outage another host took it for dead
            return None

    def _give_out(self, worker: dict[str, str]) -> Assignment | None:
        plan, settings = self.plan, self.plan.settings
        trials = self._look_for_room()
        if trials is None:
            return None
        owner = {**worker, "driver": plan.driver, "invocation": plan.invocation}
        if owner not in self._owners:
            self._owners.append(owner)
        trial = self._ask(trials, owner)
        if trial is None:
            return None
        try:
            point = plan.space.suggest(trial, self.config)
        except (DatabaseError, UpdateFinishedTrialError):
            raise
        except Exception as error:  # the sampler cannot draw from this space
            log.error("trial %d failed: %s: %s", trial.number, type(error).__name__, error)
            storage.fail(self.study, frozen(trial), f"{type(error).__name__}: {error}"[:2000])
            return None
        if settings.duplicates == "skip" and self._was_tried(trial, trials):
            self._discard(trial, storage.DUPLICATE)
            self._n_duplicates += 1
            if self._n_duplicates >= MAX_DUPLICATES:
                self.stop(f"the last {MAX_DUPLICATES} points were duplicates")
            return self._give_out(worker)
        self._n_duplicates = 0
        directory = str(plan.directory / str(trial.number))
        trial.set_user_attr(storage.DIRECTORY, directory)
        self._running[trial.number] = trial
        overrides = [*plan.space.fixed, *(f"{name}={value}" for name, value in point.items())]
        resume = trial.user_attrs.get(storage.RESUME)
        if resume is not None:
            first = trial.user_attrs[storage.FIRST]
            attempts = [t for t in trials if first_attempt(t) == first and t.number != trial.number]
            self._earlier[trial.number] = attempts
        return Assignment(trial.number, point, overrides, resume)

    def _look_for_room(self) -> list[FrozenTrial] | None:
        """Return the trials so far; None if no other one may begin now. Queues points of a grid."""
        plan, trials = self.plan, self.look()
        n_finished = plan.finished(trials)
        if self.is_over or n_finished >= plan.n_trials:
            self.is_over = True
            return None
        waits = self._is_new and self._orphans_end  # to begin with the trials that they give back
        if waits or n_finished + plan.running(trials) >= plan.n_trials:
            return None
        self._is_new = False
        if plan.grid is not None and not count(trials, TrialState.WAITING):
            lock = plan.directory / "grid.lock"
            storage.enqueue_grid(self.study, plan.grid, plan.failed_before, lock)
            trials = self.look()
            if not count(trials, TrialState.WAITING):  # another driver is about to queue some
                return None
        return trials

    def _ask(self, before: list[FrozenTrial], owner: dict[str, Any]) -> optuna.Trial | None:
        """Begin a trial: a queued one if there is any, retries first.

        Args:
            before: the trials so far.

        Returns:
            None if others use up the budget, or if the sampler fails, which FAILs the trial.
        """
        queued = [t for t in before if t.state is TrialState.WAITING]
        queued.sort(key=first_attempt)
        trial_id = begin(self.study, queued, {storage.WORKER: owner})
        try:
            trial = optuna.Trial(self.study, trial_id)
        except DatabaseError:
            raise
        except Exception as error:
            log.exception("the sampler failed")
            why = f"{type(error).__name__}: {error}"[:2000]
            storage.fail(self.study, read_trial(self.study, trial_id), why)
            return None
        if self._is_surplus(trial, before):
            self._discard(trial, storage.SURPLUS)
            return None
        return trial

    def _discard(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr(storage.REPLACED, why)
        self.study.tell(trial, state=TrialState.FAIL)

    def _is_surplus(self, trial: optuna.Trial, before: list[FrozenTrial]) -> bool:
        """Whether trials with smaller numbers use up the budget. This is exact without a lock.

        Args:
            before: the trials just before this one was asked for. They decide, unless another
                coordinator asked in between or one of them may have failed since.
        """
        if trial.number <= len(before) and not self._use_up_budget(before, trial):
            return False
        return self._use_up_budget(self.look(), trial)

    def _use_up_budget(self, trials: list[FrozenTrial], trial: optuna.Trial) -> bool:
        earlier = [t for t in trials if t.number < trial.number and t.state is not TrialState.FAIL]
        if self.plan.grid is None:
            return len(earlier) >= self.plan.n_trials
        key = trial.user_attrs.get(storage.GRID)
        # a trial without a point was asked for while another coordinator took the last of the queue
        return key not in self.plan.grid or any(
            t.user_attrs.get(storage.GRID) == key for t in earlier
        )

    def _was_tried(self, trial: optuna.Trial, trials: list[FrozenTrial]) -> bool:
        earlier = [t for t in trials if t.number < trial.number]
        return any(t.state in DONE and t.params == trial.params for t in earlier)

    def set_directory(self, number: int, directory: str) -> None:
        if (trial := self._running.get(number)) is not None:
            with suppress(UpdateFinishedTrialError):  # another host took this one for dead
                trial.set_user_attr(storage.DIRECTORY, directory)

    def report(self, number: int, step: int, value: float, *, final: bool) -> bool:
        """Record the objective after a step. Returns True if the trial should stop."""
        trial = self._running.get(number)
        if trial is None:
            return True
        try:
            self._repeat_reports(trial, before=step)
            trial.report(value, step)
            return not (final or isinstance(self.study.pruner, NopPruner)) and trial.should_prune()
        except UpdateFinishedTrialError:  # another host took this one for dead
            return True

    def _repeat_reports(self, trial: optuna.Trial, before: int) -> None:
        """Report what earlier attempts reported before the checkpoint that a retry resumed from.

        Args:
            before: the step that the retry reports first.
        """
        attempts = self._earlier.pop(trial.number, [])
        values = {k: v for t in attempts for k, v in t.intermediate_values.items() if k < before}
        for step in sorted(values):
            trial.report(values[step], step)
            if not isinstance(self.study.pruner, NopPruner):
                trial.should_prune()  # the pruner may note the value; the trial has gone on since

    def _repeat_all(self, trial: optuna.Trial) -> None:
        """Report what earlier attempts reported if the checkpoint was of the finished trial."""
        attempts = self._earlier.pop(trial.number, [])
        values = {k: v for t in attempts for k, v in t.intermediate_values.items()}
        for step in sorted(values):
            trial.report(values[step], step)
        for attempt in attempts:
            copy_pruner_records(attempt, trial)

    def tell(self, number: int, result: Result) -> None:
        """Record the end of a trial that was not interrupted."""
        if (trial := self._running.get(number)) is None:
            return
        with suppress(UpdateFinishedTrialError):  # another host took this one for dead
            self._repeat_all(trial)
            if result.summary:
                trial.set_user_attr(storage.SUMMARY, dict(result.summary))
            if result.error is not None:
                storage.fail(self.study, frozen(trial), result.error)
            elif result.pruned:
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            elif result.values is not None:
                self.study.tell(trial, result.values, skip_if_finished=True)
            elif self.plan.grid is None:
                storage.fail(self.study, frozen(trial), NO_OBJECTIVE)
            else:  # Optuna wants a value
                trial.set_user_attr(storage.NO_VALUE, True)
                zeros = [0.0] * len(self.plan.metrics)
                self.study.tell(trial, zeros, skip_if_finished=True)
        del self._running[number]

    def fail(self, number: int, why: str) -> None:
        if (trial := self._running.pop(number, None)) is not None:
            log.error("trial %d failed: %s", number, why)
            storage.fail(self.study, frozen(trial), why)

    def take_back(self, number: int) -> None:
        """Queue a trial again that no worker has received."""
        if (trial := self._running.pop(number, None)) is not None:
            storage.requeue(self.study, frozen(trial), storage.INTERRUPTED, self.plan.settings)

    def release(self, number: int, why: str) -> None:
        """Queue a trial again whose process died (STALE) or was interrupted; see `study.retry`."""
        if (trial := self._running.pop(number, None)) is None:
            return
        if self.stop_reason is not None:  # it ended with the sweep
            storage.requeue(self.study, frozen(trial), storage.INTERRUPTED, self.plan.settings)
        else:
            storage.retry(self.study, frozen(trial), why, self.plan.settings)

    def tick(self) -> None:
        """Beat for the running trials, look at the study, and queue dead trials again."""
        grace_s = self.plan.settings.grace_s
        if time.monotonic() - self._beat_at > grace_s / 4:
            record_heartbeats(self.study, self._running.values())
            self._beat_at = time.monotonic()
        self.look()
        now = time.monotonic()
        if now - self._ticked_at > LOOK_S + grace_s / 2:  # the database was away
            self._listens_since = now
        self._ticked_at = now
        self.reap()

    def reap(self) -> None:
        """Queue the dead among the trials again.

        A heartbeat that timed out means nothing until this coordinator has listened for
        `grace_s`: while the database is away, nobody can beat.
        """
        settings = self.plan.settings
        others = [t for t in self.trials if t.number not in self._running]
        for trial in others:
            owner = trial.user_attrs.get(storage.WORKER)
            if trial.state is TrialState.RUNNING and owner in self._owners:
                # it was begun, but the database's answer was lost: no worker has received it
                storage.requeue(self.study, trial, storage.INTERRUPTED, settings)
        listened_s = time.monotonic() - self._listens_since
        self._orphans_end = storage.reap(
            self.study, others, settings, trust_heartbeats=listened_s > settings.grace_s
        )


class CoordinatorThread(threading.Thread):
    """Does all that touches the study, in order. It waits for a database that is away."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__(daemon=True)
        self.coordinator = coordinator
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._is_closed = False

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> "Future[T]":
        """Call a method of the coordinator in this thread."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*args, **kwargs)))
        return future

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a method of the coordinator without waiting for it. Its error ends the sweep."""
        self.call(function, *args).add_done_callback(self._note_error)

    def _note_error(self, future: "Future[Any]") -> None:
        if (error := future.exception()) is not None:
            self._end_sweep(error)

    def _end_sweep(self, error: BaseException) -> None:
        log.error("%s: %s", type(error).__name__, error)
        self.coordinator.error = self.coordinator.error or error
        self.coordinator.stop(f"{type(error).__name__}: {error}")

    def run(self) -> None:
        look_at = time.monotonic()
        while True:
            with suppress(queue.Empty):
                item = self._calls.get(timeout=max(0.0, look_at - time.monotonic()))
                if item is None:
                    return
                future, function = item
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_S
                try:
                    self.coordinator.tick()
                except DatabaseError as error:
                    self._end_sweep(error)
                except Exception as error:
                    if self._is_closed:  # it was told to wait no longer
                        return
                    log.warning("%s: %s", type(error).__name__, error)

    def close(self, timeout_s: float | None = None) -> bool:
        """End the thread after the calls so far; False if they did not end in time.

        A second call does not wait.
        """
        if not self._is_closed:
            self._is_closed = True
            self._calls.put(None)
            self.join(timeout_s)
        return not self.is_alive()


class Channel:
    """A worker's way to the coordinator. It knows which trial the worker runs, and for how long.

    Args:
        worker: the identity of the worker's process.
        is_alive: whether that process lives.
        interrupt: interrupts the worker's trial.
        end: ends the process of a worker that does not obey.
    """

    def __init__(
        self,
        thread: CoordinatorThread,
        worker: dict[str, str],
        *,
        is_alive: Callable[[], bool],
        interrupt: Callable[[], None],
        end: Callable[[], None],
    ) -> None:
        self.thread, self.coordinator, self.worker = thread, thread.coordinator, worker
        self._is_alive, self._interrupt, self._end = is_alive, interrupt, end
        self._lock = threading.Lock()  # a trial that has ended must not be interrupted
        self._number: int | None = None
        self._limit_s = self.coordinator.plan.settings.trial_timeout_s or math.inf
        self._started_at = 0.0
        self._timed_out = False
        self._pruned = False  # the answer to the latest report
        self._late: list[Future[bool]] = []  # answers that the trial did not wait for

    def next(self) -> Assignment | None:
        while not self.coordinator.is_over and self._is_alive():
            future = self.thread.call(self.coordinator.next, self.worker)
            try:  # the database may be away
                while not wait([future], WAIT_S).done and self._is_waiting():
                    pass
            except BaseException:  # a signal
                future.add_done_callback(self._take_back)
                raise
            if not (future.done() and self._is_alive()):
                future.add_done_callback(self._take_back)
                return None
            if (assignment := future.result()) is not None:
                self._number, self._started_at = assignment.number, time.monotonic()
                self._timed_out = self._pruned = False
                self._late.clear()
                return assignment
            if not self.coordinator.is_over:
                time.sleep(WAIT_S)
        return None

    def set_directory(self, directory: str) -> None:
        assert self._number is not None
        self.thread.post(self.coordinator.set_directory, self._number, directory)

    def _is_waiting(self) -> bool:
        return self.coordinator.stop_reason is None and self._is_alive()

    def _take_back(self, future: "Future[Assignment | None]") -> None:
        """Queue a trial again that came too late for this worker."""
        if future.exception() is not None or (assignment := future.result()) is None:
            return
        if threading.current_thread() is self.thread:
            self.coordinator.take_back(assignment.number)
        else:
            self.thread.post(self.coordinator.take_back, assignment.number)

    def report(self, step: int, value: float, *, final: bool) -> bool:
        assert self._number is not None
        late = [each for each in self._late if each.done()]
        self._late = [each for each in self._late if not each.done()]
        self._pruned = any(each.result() for each in late)
        future = self.thread.call(self.coordinator.report, self._number, step, value, final=final)
        try:
            self._pruned |= future.result(0 if self.coordinator.is_waiting else REPORT_S)
        except TimeoutError:  # the database is away, or other workers' samplers take long
            self._late.append(future)
        return self._pruned

    def tell(self, result: Result) -> bool:
        with self._lock:
            number, self._number = self._number, None
        if number is None:  # interrupted after it had told its result
            return self._timed_out
        if not result.interrupted:
            if self._pruned and result.values is not None:
                # the task reported from a process of its own, whose answer the worker does not know
                result = Result(pruned=True, summary=result.summary)
            self.thread.post(self.coordinator.tell, number, result)
            return True
        if self._timed_out:
            self.thread.post(self.coordinator.fail, number, self._timeout_text())
            return True
        if self.worker == self.coordinator.plan.driver:  # with hydra/launcher=basic
            self.coordinator.stop(storage.INTERRUPTED)
        # Ctrl-C may reach the worker before the driver
        storage.wait_until(lambda: self.coordinator.stop_reason is not None, MARK_S)
        why = storage.INTERRUPTED if result.by_signal else storage.STALE
        self.thread.post(self.coordinator.release, number, why)
        return False

    def died(self) -> None:
        """The worker's process has ended."""
        number, self._number = self._number, None
        if number is not None:
            self.thread.post(self.coordinator.release, number, storage.STALE)

    def interrupt(self) -> None:
        """Interrupt the trial, if there is one."""
        with self._lock:
            if self._number is not None:
                self._interrupt()

    def check_time(self) -> None:
        """Interrupt a trial that is over its time limit. End its process if it does not obey."""
        with self._lock:
            number, age = self._number, time.monotonic() - self._started_at
            if number is None or age <= self._limit_s:
                return
            if not self._timed_out:
                self._timed_out = True
                self._interrupt()
                return
            if age <= self._limit_s + HANG_S:
                return
            self._number = None
        # it hangs in code that handles no signals
        self.thread.call(self.coordinator.fail, number, self._timeout_text()).result()
        self._end()

    def _timeout_text(self) -> str:
        key = self.coordinator.plan.settings.key
        return f"longer than {key}.trial_timeout_s={self._limit_s:g}"
