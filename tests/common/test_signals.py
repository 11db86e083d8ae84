"""Handling of signals, with signals that the test process sends to itself."""

import signal

import pytest

from mnist_sweep.common.signals import Deferred, ignored, obeyed


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


def test_deferred_signal_waits_and_a_second_one_does_not() -> None:
    deferred = Deferred()
    with pytest.raises(SystemExit), deferred.installed():
        signal.raise_signal(signal.SIGTERM)
        assert deferred.pending
        deferred.obey_pending()
    impatient = Deferred()
    steps = []
    with pytest.raises(KeyboardInterrupt), impatient.installed():
        signal.raise_signal(signal.SIGTERM)
        steps.append("waited")
        signal.raise_signal(signal.SIGINT)
        steps.append("not reached")
    assert steps == ["waited"]
