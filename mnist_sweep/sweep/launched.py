"""A worker under another launcher of Hydra, with a coordinator of its own."""

import logging
import os
import signal
import threading
from contextlib import suppress

import optuna
from omegaconf import DictConfig

from mnist_sweep.common import processes, signals
from mnist_sweep.sweep import samplers
from mnist_sweep.sweep import study as storage
from mnist_sweep.sweep.config import settings_of
from mnist_sweep.sweep.coordinator import (
    LOOK_S,
    SETTLE_S,
    Channel,
    Coordinator,
    CoordinatorThread,
)
from mnist_sweep.sweep.plan import Plan
from mnist_sweep.sweep.worker import Job, run_trials

log = logging.getLogger(__name__)


class LaunchedWorker:
    """Runs trials until the budget is used up. A launcher gets it in place of the task function."""

    def __init__(self, plan: Plan, job: Job, cwd: str) -> None:
        self.plan, self.job, self.cwd = plan, job, cwd

    def __call__(self, _worker_config: DictConfig) -> int:
        """Run trials until the budget is used up; return how many.

        After a signal the trial is queued again. Then the handler of the launcher gets the signal:
        that of submitit queues its job again, or ends it.
        """
        os.chdir(self.cwd)  # Ray's workers start elsewhere
        try:
            return self._run()
        except signals.Terminated as terminated:
            signals.pass_on(terminated.signum)
            raise

    def _run(self) -> int:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signals.obey)  # Ray and a shell's & leave it ignored
        settings, config = self.plan.settings, self.job.config
        url = storage.storage_url(settings_of(config).storage, settings.store)
        study = optuna.load_study(
            study_name=self.plan.study_name,
            storage=storage.open_storage(
                url, settings.grace_s, f"{settings.key}.storage", wait=True
            ),
            sampler=samplers.make_sampler(settings),
            pruner=samplers.make_pruner(settings),
        )
        thread = CoordinatorThread(Coordinator(study, self.plan, self.job.config))
        channel = Channel(
            thread,
            processes.process_identity(),
            is_alive=lambda: True,
            interrupt=signals.interrupt_main,
            # with hydra/launcher=basic this process is the driver
            end=lambda: None if processes.process_identity() == self.plan.driver else os._exit(1),
        )
        thread.start()
        over = threading.Event()
        guard = threading.Thread(target=self._guard, args=(study, channel, over), daemon=True)
        guard.start()
        try:
            with signals.obeyed():
                n_run = run_trials(self.job, channel)
            if thread.coordinator.error is not None:
                raise thread.coordinator.error
            return n_run
        finally:
            with signals.ignored():
                over.set()
                guard.join(SETTLE_S)
                if not thread.close(SETTLE_S):  # the database is away
                    storage.give_up(study)

    def _guard(self, study: optuna.Study, channel: Channel, over: threading.Event) -> None:
        """Interrupt the trial if the sweep is interrupted, the driver dies or the time is up."""
        coordinator, is_interrupted, mark = channel.coordinator, False, None
        while not over.wait(LOOK_S):
            channel.check_time()
            if is_interrupted:
                continue
            mark = mark or channel.thread.call(storage.is_interrupted, study, self.plan.invocation)
            with suppress(TimeoutError, storage.DatabaseError):  # the database is away, or gone
                is_interrupted = mark.result(LOOK_S)
            mark = None if mark.done() else mark
            if is_interrupted := is_interrupted or processes.is_dead(self.plan.driver):
                coordinator.stop(storage.INTERRUPTED)
                channel.interrupt()
