"""The worker processes of ProcessLauncher: starts, serves, restarts and ends them.

The processes are forks of a server that has imported the application's libraries once. A thread
serves each of them: it receives the worker's questions through a pipe and asks the coordinator.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals

from mnist_sweep.common import processes, signals
from mnist_sweep.common.files import make_folder
from mnist_sweep.sweep import worker_process
from mnist_sweep.sweep.coordinator import Channel, CoordinatorThread
from mnist_sweep.sweep.study import INTERRUPTED
from mnist_sweep.sweep.worker import Job
from mnist_sweep.sweep.worker_process import END_S

log = logging.getLogger(__name__)

SHORT_LIFE_S = 10  # a worker that dies sooner counts towards `restarts`
POLL_S = 0.5  # between two looks at a process that is silent


def run_workers(
    job: Job,
    thread: CoordinatorThread,
    environments: Sequence[Mapping[str, str]],
    *,
    restarts: int,
    start_method: str,
    preload: Sequence[str],
) -> None:
    """Run a worker in each environment until each has ended or died too often.

    Args:
        environments: variables of each worker.
        restarts: in a row, of a worker that dies within seconds.
        start_method: "forkserver" or "spawn"; see `multiprocessing.get_context`.
        preload: modules that the fork server imports.
    """
    context: Any = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(["__main__", *preload, worker_process.__name__])
    setup_globals()
    log_dir = job.directory / ".workers"
    make_folder(log_dir)
    lifeline, held = context.Pipe(duplex=False)
    arguments = (cloudpickle.dumps((job, Singleton.get_state())), lifeline)
    slots = [
        _Slot(index, thread, partial(_start, context, *arguments, environment), restarts, log_dir)
        for index, environment in enumerate(environments)
    ]
    try:
        for slot in slots:
            slot.start()
        while any(slot.is_alive() for slot in slots):
            for slot in slots:
                slot.join(POLL_S)
    except (KeyboardInterrupt, SystemExit):
        thread.coordinator.stop(INTERRUPTED)
        raise
    finally:
        with signals.ignored():  # a second Ctrl-C would leave some of them
            _end(slots)
            held.close()
            lifeline.close()
    for slot in slots:
        if slot.error is not None:
            raise slot.error


def _start(
    context: Any,
    payload: bytes,
    lifeline: Connection,
    environment: Mapping[str, str],
    log_path: Path,
) -> tuple[BaseProcess, Connection]:
    ours, theirs = context.Pipe()
    arguments = (payload, theirs, lifeline, environment, log_path)
    process = context.Process(target=worker_process.main, args=arguments)
    before = {name: os.environ.get(name) for name in environment}
    # libraries read some of them when they are imported, which the fork server does
    os.environ.update(environment)
    try:
        process.start()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    theirs.close()
    return process, ours


class _Slot(threading.Thread):
    """Serves one worker process after the other."""

    lock = threading.Lock()  # multiprocessing starts one process at a time

    def __init__(
        self,
        index: int,
        thread: CoordinatorThread,
        start_process: Any,
        restarts: int,
        log_dir: Path,
    ) -> None:
        super().__init__(daemon=True)
        self.index, self.thread, self.restarts = index, thread, restarts
        self._start_process, self._log = start_process, log_dir / f"{index}.log"
        self.process: BaseProcess | None = None
        self.error: BaseException | None = None  # of the coordinator

    def run(self) -> None:
        failures = 0
        while not self.thread.coordinator.is_over and failures <= self.restarts:
            started_at = time.monotonic()
            with self.lock:
                self.process, connection = self._start_process(self._log)
            try:
                with connection:
                    self._serve(self.process, connection)
            except BaseException as error:
                self.error = error
                self.thread.coordinator.stop(f"{type(error).__name__}: {error}")
                self.process.kill()
            self.process.join()
            if self.process.exitcode == 0:
                return
            failures = failures + 1 if time.monotonic() - started_at < SHORT_LIFE_S else 0
            if self.thread.coordinator.stop_reason is None:
                tail = _tail(self._log)
                log.warning(
                    "worker %d died (exit code %s)%s", self.index, self.process.exitcode, tail
                )

    def _serve(self, process: BaseProcess, connection: Connection) -> None:
        """Answer the worker until its process ends."""
        assert process.pid is not None
        channel = Channel(
            self.thread,
            processes.process_identity(process.pid),
            interrupt=partial(os.kill, process.pid, signal.SIGINT),
            end=process.kill,
        )
        while True:
            ready = wait([connection, process.sentinel], POLL_S)
            if connection in ready:
                try:
                    method, args, kwargs = connection.recv()
                    connection.send(getattr(channel, method)(*args, **kwargs))
                    continue
                except (EOFError, OSError):  # it has ended, or died in the middle of a message
                    process.join(END_S)
            # a process that it started may hold the pipe, and keep its end from us
            if not process.is_alive():
                channel.died()
                return
            channel.check_time()


def _end(slots: Sequence[_Slot]) -> None:
    alive = [s.process for s in slots if s.process is not None and s.is_alive()]
    for process in alive:
        with suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + END_S
    for slot in slots:
        slot.join(max(0.0, deadline - time.monotonic()))
    for process in alive:
        if process.is_alive():
            process.kill()
    for slot in slots:
        slot.join(POLL_S)


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return f"; the end of {path}:\n  " + "\n  ".join(lines[-3:]) if lines else ""
