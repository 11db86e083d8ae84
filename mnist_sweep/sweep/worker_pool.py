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
        own = [worker_process.__name__, "mnist_sweep.sweep.fork_server"]
        context.set_forkserver_preload(["__main__", *preload, *own])
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
        for slot in slots:
            while not slot.over.wait(POLL_S):
                pass
    except (KeyboardInterrupt, SystemExit):
        thread.coordinator.stop(INTERRUPTED)
        raise
    finally:
        with signals.ignored():  # a second Ctrl-C would leave some of them
            _end(slots)
            held.close()
            lifeline.close()
    errors = [thread.coordinator.error, *(slot.error for slot in slots)]
    for error in filter(None, errors):
        raise error


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
        self.error: BaseException | None = None  # of the coordinator, or of starting a process
        # set at the end; join() and is_alive() are wrong after a signal has interrupted a join()
        self.over = threading.Event()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error
            self.thread.coordinator.stop(f"{type(error).__name__}: {error}")
        finally:
            self.over.set()

    def _run(self) -> None:
        failures = 0
        while not self.thread.coordinator.is_over and failures <= self.restarts:
            started_at = time.monotonic()
            with self.lock:
                self.process, connection = self._start_process(self._log)
            channel = self._channel(self.process)
            try:
                with connection:
                    self._serve(self.process, connection, channel)
            except BaseException:
                self.process.kill()
                raise
            finally:
                self.process.join()
                channel.died()
            if self.process.exitcode == 0 and self.thread.coordinator.is_over:
                return
            failures = failures + 1 if time.monotonic() - started_at < SHORT_LIFE_S else 0
            if self.thread.coordinator.stop_reason is None:
                tail = _tail(self._log)
                log.warning(
                    "worker %d died (exit code %s)%s", self.index, self.process.exitcode, tail
                )

    def _channel(self, process: BaseProcess) -> Channel:
        assert process.pid is not None

        def interrupt() -> None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, signal.SIGINT)  # type: ignore[arg-type]

        worker = processes.process_identity(process.pid)
        return Channel(
            self.thread,
            worker,
            is_alive=process.is_alive,
            interrupt=interrupt,
            end=process.kill,
        )

    def _serve(self, process: BaseProcess, connection: Connection, channel: Channel) -> None:
        """Answer the worker until its process ends."""
        while True:
            channel.check_time()
            question = None
            if connection in wait([connection, process.sentinel], POLL_S):
                try:
                    question = connection.recv()
                except (EOFError, OSError):  # it has ended, or died in the middle of a message
                    process.join(END_S)
            if question is not None:
                answer = _answer(channel, *question)
                with suppress(OSError):  # it died meanwhile
                    connection.send(answer)
            # a process that it started may hold the pipe, and keep its end from us
            elif not process.is_alive():
                return


def _answer(
    channel: Channel, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Exception | None]:
    """Return the answer to a worker. A report that cannot be recorded is the task's own error."""
    try:
        return getattr(channel, method)(*args, **kwargs), None
    except Exception as error:
        if method != "report":
            raise
        return None, error


def _end(slots: Sequence[_Slot]) -> None:
    started = [slot for slot in slots if slot.ident is not None]
    alive = [s.process for s in started if s.process is not None and not s.over.is_set()]
    for process in alive:
        with suppress(ProcessLookupError):
            process.terminate()
    for seconds in (END_S, POLL_S):
        deadline = time.monotonic() + seconds
        for slot in started:
            slot.over.wait(max(0.0, deadline - time.monotonic()))
        for process in alive:
            if process.is_alive():
                process.kill()


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return f"; the end of {path}:\n  " + "\n  ".join(lines[-3:]) if lines else ""
