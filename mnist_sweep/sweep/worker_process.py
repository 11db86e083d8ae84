"""A worker in a process of its own, at the other end of a pipe from its coordinator."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import setup_globals

from mnist_sweep.common import signals
from mnist_sweep.sweep.worker import Assignment, Result, log_to_stdout, run_trials

log = logging.getLogger(__name__)

END_S = 5  # for a worker to save its trial after SIGTERM, or after its driver has died


class PipeClient:
    """Asks the coordinator at the other end of a pipe. A signal waits until the answer has arrived.

    Its methods raise SystemExit if the driver has died, so that the task saves what it has.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def next(self) -> Assignment | None:
        answer: Assignment | None = self._ask("next")
        return answer

    def set_directory(self, directory: str) -> None:
        self._ask("set_directory", directory)

    def report(self, step: int, value: float, *, final: bool) -> bool:
        return bool(self._ask("report", step, value, final=final))

    def tell(self, result: Result) -> bool:
        return bool(self._ask("tell", result))

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            with signals.Deferred().installed():
                self.connection.send((method, args, kwargs))
                answer, error = self.connection.recv()
        except (EOFError, OSError) as lost:
            raise SystemExit("the driver has died") from lost
        if error is not None:
            raise error
        return answer


def main(
    payload: bytes,
    connection: Connection,
    lifeline: Connection,
    environment: Mapping[str, str],
    log_path: Path,
) -> None:
    """Run trials until the coordinator has no more.

    Args:
        payload: a Job and the state of Hydra's singletons, pickled.
        lifeline: the read end of a pipe that only the driver can write to.
        environment: variables to set.
        log_path: file that receives stdout and stderr.
    """
    for signum in signals.TERMINATING:  # the server ignores them
        signal.signal(signum, signal.SIG_DFL)
    with open(log_path, "a", buffering=1) as output:
        os.dup2(output.fileno(), sys.stdout.fileno())
        os.dup2(output.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    if (
        "numpy.random" in sys.modules
    ):  # otherwise all forks of the server would draw the same numbers
        sys.modules["numpy.random"].seed()
    threading.Thread(target=_end_with_driver, args=(lifeline,), daemon=True).start()
    job, singletons = cloudpickle.loads(payload)
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().cfg = None  # of the driver, whose log is not this worker's
    log_to_stdout()
    log.info("worker %d: %s", os.getpid(), " ".join(f"{k}={v}" for k, v in environment.items()))
    signal.signal(signal.SIGINT, signals.obey)  # a shell's & leaves it ignored
    with signals.obeyed():
        run_trials(job, PipeClient(connection))


def _end_with_driver(lifeline: Connection) -> None:
    """Interrupt the trial when the driver has died, so that it saves its checkpoint."""
    lifeline.poll(None)  # until the end of the file
    signals.interrupt_main()
    time.sleep(END_S)
    os._exit(1)
