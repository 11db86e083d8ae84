"""SIGINT and SIGTERM: held back where a run is between two whole states, obeyed everywhere else."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def obey(signum: int, _frame: FrameType | None = None) -> None:
    """Raise KeyboardInterrupt for SIGINT, SystemExit(143) for SIGTERM: the usual exit codes."""
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


@contextmanager
def obeyed() -> Iterator[None]:
    """Inside, SIGTERM unwinds the stack like Ctrl-C does, so that `with` blocks close what they opened."""
    with _handling(obey):
        yield


@contextmanager
def ignored() -> Iterator[None]:
    """Inside, nothing comes between: for the few seconds in which what was interrupted is put right."""
    with _handling(signal.SIG_IGN):
        yield


class Deferred:
    """Inside `with`, a signal waits for the next `obey_pending`; a second one does not wait."""

    def __init__(self) -> None:
        self._pending: int | None = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            obey(signum, frame)
        self._pending = signum

    @property
    def pending(self) -> bool:
        return self._pending is not None

    def obey_pending(self) -> None:
        if self._pending is not None:
            obey(self._pending)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with _handling(self._note):
            yield
        self.obey_pending()  # one that came after the last look


@contextmanager
def _handling(handler: "signal._HANDLER") -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    previous = {s: signal.signal(s, handler) for s in SIGNALS}
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
