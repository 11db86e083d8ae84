"""Loops that call `on_epoch_end(epoch, logs)` report to the sweep, and a pruned trial stops."""

from collections.abc import Mapping
from types import SimpleNamespace

from mnist_sweep.integrations.keras import ReportToSweep
from mnist_sweep.sweep import Trial
from mnist_sweep.sweep.trial import CURRENT


class Pruned(Trial):
    """Is pruned at the second step."""

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        return step == 2 and not final


def test_outside_of_a_sweep_nothing_stops() -> None:
    assert not ReportToSweep().on_epoch_end(0, {"loss": 1})
    assert not ReportToSweep().on_epoch_end(0)


def test_pruned_trial_stops_the_model() -> None:
    callback = ReportToSweep()
    callback.model = SimpleNamespace(stop_training=False)
    token = CURRENT.set(Pruned())
    try:
        assert not callback.on_epoch_end(0, {"loss": 1})
        assert not callback.model.stop_training
        assert callback.on_epoch_end(1, {"loss": 1})
        assert callback.model.stop_training
        callback.params = {"epochs": 2}
        assert not callback.on_epoch_end(1, {"loss": 1}), "the last epoch is done"
    finally:
        CURRENT.reset(token)
