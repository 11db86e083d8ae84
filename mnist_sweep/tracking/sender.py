"""Sends the record of a run in the background, and waits for an MLflow store that is away."""

import logging
import threading
import time

from mnist_sweep.common.errors import one_line
from mnist_sweep.common.secrets import mask_in, mask_url
from mnist_sweep.tracking.buffer import Buffer, send, send_left_over
from mnist_sweep.tracking.queries import answers, check_server
from mnist_sweep.tracking.retry import RETRY_FOR_S, is_locked, is_outage
from mnist_sweep.tracking.run import MlflowRun

log = logging.getLogger(__name__)

PROBE_S = 2.0  # between two looks whether a store that is away is back
LOOK_S = 10.0  # between two looks for records that are left over


class Sender(threading.Thread):
    """Sends the entries of a record in order, and between them what other processes left over.

    Attributes:
        run_in_store: the run; None before the store was reached.
        error: why the store refuses the record; None: it does not.
        is_away: whether the store is away.

    Args:
        may_exist: whether the run may be in the store already.
        fails: whether an outage counts as an error.
    """

    def __init__(
        self, buffer: Buffer, uri: str, store: str, *, may_exist: bool, fails: bool
    ) -> None:
        super().__init__(daemon=True, name="mlflow-sender")
        self.buffer, self.uri, self.store = buffer, uri, store
        self.run_in_store: MlflowRun | None = None
        self.error: Exception | None = None
        self.is_away = False
        self._may_exist, self._fails = may_exist, fails
        self._since = 0.0  # when the outage began
        self._is_busy = False
        self._n_unsent = 0
        self._is_closing = threading.Event()
        self._is_last_look = self._has_ended = self._closes_record = False
        self._changed = threading.Condition()

    def note_added(self) -> None:
        """Call this after every new entry."""
        with self._changed:
            self._n_unsent += 1
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None, *, through_outage: bool = False) -> None:
        """Wait until everything is sent, or until it cannot be at present.

        Args:
            through_outage: wait until the store is back.

        Raises:
            Exception: `error`.
        """

        def is_over() -> bool:
            done = self.run_in_store is not None and not self._n_unsent
            gives_up = self.is_away and not through_outage
            return done or gives_up or self._has_ended

        with self._changed:
            self._changed.wait_for(is_over, timeout_s)
        if self.error is not None:
            raise self.error

    def close(self, timeout_s: float | None = None) -> bool:
        """Send what is left, unless the store is away, end the thread, and close the record.

        A thread that goes on sending after the timeout closes the record at its own end. Otherwise
        another process would send the same entries at the same time.

        Returns:
            Whether everything was sent.
        """
        self._is_closing.set()
        with self._changed:
            self._changed.notify_all()
        self.join(timeout_s)
        with self._changed:
            self._closes_record = not self._has_ended and bool(self.buffer.entries())
        return not self._closes_record and self.buffer.close()

    def run(self) -> None:
        try:
            while not self._send_until_outage() and self._wait_until_back():
                pass
        except Exception as error:
            self.error = error
        finally:
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()
            if self._closes_record:
                self.buffer.close()

    def _send_until_outage(self) -> bool:
        """Send entries as they come. Returns True at the end, and False if the store is away."""
        has_looked = False  # for what is left over: once at least
        try:
            if self.run_in_store is None:
                check_server(self.uri)  # faster than MLflow's own retries
                record = self.buffer.record
                if self._may_exist:  # what an earlier process recorded of this run comes first
                    send_left_over(self.uri, self.store, record.identity)
                may_exist, self._may_exist = self._may_exist, True  # also if this fails halfway
                self.run_in_store = record.open(self.uri, self.store, may_exist=may_exist)
            while True:
                for entry in self.buffer.entries():
                    send(self.run_in_store, entry)
                    self._note_sent()
                self._note_sent(0)
                if has_looked and self._is_closing.is_set() and not self.buffer.entries():
                    return True
                send_left_over(self.uri, self.store)
                has_looked = True
                with self._changed:
                    self._changed.wait_for(
                        lambda: self._n_unsent or self._is_closing.is_set(), LOOK_S
                    )
        except Exception as error:
            if not is_outage(error):
                raise
            self._note_outage(error)
            if self._fails and not self._is_busy:
                raise
            return False

    def _note_sent(self, n: int = 1) -> None:
        with self._changed:
            self._n_unsent -= n
            if self.is_away:
                log.info("MLflow is back after %.0f s", time.monotonic() - self._since)
            self.is_away = False
            self._changed.notify_all()

    def _note_outage(self, error: Exception) -> None:
        if not self.is_away:
            self._since = time.monotonic()
            reason = one_line(error, 200) if answers(self.uri) else "no answer"
            log.warning(
                "WARNING: MLflow is away: %s: %s", mask_url(self.uri), mask_in(reason, self.uri)
            )
        with self._changed:
            self.is_away = True
            # another process holds the lock
            self._is_busy = is_locked(error) and time.monotonic() - self._since < RETRY_FOR_S
            self._changed.notify_all()

    def _wait_until_back(self) -> bool:
        """Look for the store from time to time. Returns False if the run ends before it is back."""
        while not self._is_last_look:
            self._is_last_look = self._is_closing.wait(PROBE_S) and not self._is_busy
            if answers(self.uri):
                return True
        return False
