"""Handlers for the signals that interrupt: stop at once, stop at the next safe point, or ignore.

They are SIGINT (Ctrl-C), SIGTERM (`kill`, `scancel`, a time limit), and SIGUSR2, by which SLURM and
submitit announce a preemption or a time limit.
"""

import _thread
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATING = (signal.SIGTERM, *([signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else []))
SIGNALS = (signal.SIGINT, *TERMINATING)


class Terminated(SystemExit):
    """A signal other than Ctrl-C ended the process; the exit code is 128 plus its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def obey(signum: int, _frame: FrameType | None = None) -> None:
    """Raise KeyboardInterrupt for SIGINT, or Terminated for another signal."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(signum)


def interrupt_main() -> None:
    """Interrupt the main thread as Ctrl-C does, also while it sleeps or waits."""
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)
    else:
        _thread.interrupt_main()


def pass_on(signum: int) -> None:
    """Call the handler of the code around `obeyed`, if there is one, after the cleanup."""
    if callable(handler := signal.getsignal(signum)):
        handler(signum, None)


@contextmanager
def obeyed() -> Iterator[None]:
    """Let all signals raise an exception, like Ctrl-C does, so that `with` blocks clean up."""
    with _handling(obey):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Ignore the signals: for the few seconds of a cleanup after an interruption."""
    with _handling(signal.SIG_IGN):
        yield


class Deferred:
    """Delay a signal until the next `obey_pending`. A second signal is obeyed at once."""

    def __init__(self) -> None:
        self._pending: int | None = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            obey(signum, frame)
        self._pending = signum

    @property
    def pending(self) -> bool:
        """Whether a signal is waiting."""
        return self._pending is not None

    def obey_pending(self) -> None:
        """Raise the exception of the waiting signal, if there is one; see `obey`."""
        if self._pending is not None:
            obey(self._pending)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Delay signals until `obey_pending` or until the block ends."""
        with _handling(self._note):
            yield
        self.obey_pending()


@contextmanager
def _handling(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    previous = {s: signal.signal(s, handler) for s in SIGNALS}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
