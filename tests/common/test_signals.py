"""Handling of signals, with signals that the test process sends to itself."""

import signal

import pytest

from mnist_sweep.common.signals import Deferred, Terminated, ignored, obeyed, pass_on


def test_obeyed_signals_raise_with_the_usual_exit_codes() -> None:
    with pytest.raises(SystemExit) as raised, obeyed():
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.code == 143
    with pytest.raises(KeyboardInterrupt), obeyed():
        signal.raise_signal(signal.SIGINT)


def test_ignored_signals_do_nothing_and_the_handler_returns() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ignored():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_deferred_signal_waits_until_it_is_obeyed() -> None:
    deferred = Deferred()
    with deferred.installed():
        signal.raise_signal(signal.SIGTERM)
        assert deferred.pending
        with pytest.raises(SystemExit):
            deferred.obey_pending()
        deferred._pending = None  # otherwise the end of the block raises again


def test_deferred_signal_is_obeyed_at_the_end_of_the_block() -> None:
    with pytest.raises(SystemExit), Deferred().installed():
        signal.raise_signal(signal.SIGTERM)


def test_second_deferred_signal_is_obeyed_at_once() -> None:
    deferred = Deferred()
    with deferred.installed():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        deferred._pending = None


def test_signal_is_passed_on_to_the_handler_of_the_code_around() -> None:
    """Under submitit that handler queues the job again."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda signum, _frame: received.append(signum))
    try:
        with pytest.raises(Terminated) as raised, obeyed():
            signal.raise_signal(signal.SIGUSR2)
        assert raised.value.code == 140
        assert received == []
        pass_on(raised.value.signum)
        assert received == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
