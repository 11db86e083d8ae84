"""Lightning's own training loop reports to the sweep, and a pruned trial stops."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mnist_sweep.sweep import Trial
from mnist_sweep.sweep.trial import CURRENT
from tests.helpers import engine
from tests.helpers.apps.lightning_app import Module, data, make_trainer


class Notes(Trial):
    """Notes what is reported, and is pruned by a score of `prune_at` or more."""

    def __init__(self, prune_at: float = 100) -> None:
        self.prune_at = prune_at
        self.reports: list[tuple[int, float, bool]] = []

    def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
        self.reports.append((step, metrics["score"], final))
        return metrics["score"] >= self.prune_at


@pytest.fixture
def notes() -> Iterator[Notes]:
    trial = Notes()
    token = CURRENT.set(trial)
    yield trial
    CURRENT.reset(token)


def test_each_validated_epoch_is_reported_once(notes: Notes) -> None:
    """The sanity check is no epoch, and a validation in the middle of an epoch is not its end."""
    trainer = make_trainer(max_epochs=2, val_check_interval=0.5, num_sanity_val_steps=2)
    trainer.fit(Module(3), data(), data())
    assert notes.reports == [(1, 3, False), (2, 6, True)]


def test_epoch_without_validation_is_not_reported(notes: Notes) -> None:
    trainer = make_trainer(max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(Module(3), data(), data())
    assert [step for step, _, _ in notes.reports] == [2, 4]


def test_pruned_trial_stops(notes: Notes) -> None:
    notes.prune_at = 6
    trainer = make_trainer(max_epochs=5)
    trainer.fit(Module(3), data(), data())
    assert trainer.current_epoch == 2


def test_outside_of_a_sweep_nothing_stops() -> None:
    trainer = make_trainer(max_epochs=2)
    trainer.fit(Module(3), data(), data())
    assert trainer.current_epoch == 2


@pytest.mark.slow
def test_sweep_prunes_a_trial_of_two_processes(tmp_path: Path) -> None:
    """The first process reports, both stop, and the worker that started them learns of it."""
    code, output = engine.run(
        *("x=1,5", "strategy=ddp_fork", "hydra.sweeper.name=s"),
        "hydra.sweeper.pruner={_target_: optuna.pruners.ThresholdPruner, lower: 4}",
        store=tmp_path,
        module="tests.helpers.apps.lightning_app",
    )
    assert code == 0, output
    pruned, complete = engine.trials(tmp_path, "s")
    assert (pruned.state.name, pruned.intermediate_values) == ("PRUNED", {1: 1})
    assert complete.state.name == "COMPLETE"
    assert complete.intermediate_values == {1: 5, 2: 10, 3: 15, 4: 20}
