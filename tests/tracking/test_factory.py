"""The tracker that a configuration asks for."""

from pathlib import Path

from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.factory import make_tracker
from mnist_sweep.tracking.recorder import MlflowTracker
from mnist_sweep.tracking.tracker import Tracker
from tests.helpers.configs import composed


def tracker(trial: Trial, *overrides: str) -> Tracker:
    return make_tracker(
        composed(*overrides),
        name="s/3 compact",
        choices={"model": "compact", "optimizer": "adam"},
        overrides=list(overrides),
        directory=Path("outputs"),
        trial=trial,
    )


def test_choices_and_what_varies_are_parameters_beside_every_setting() -> None:
    trial = Trial()
    trial.number, trial.sweep = 3, "s"
    trial.params = {"experiment": "compact", "+extra.depth": 2, "optimizer.lr": 0.01}
    made = tracker(trial, "optimizer.lr=0.01")
    assert isinstance(made, MlflowTracker)
    assert made.run_name == "s/3 compact"
    assert made.tags.items() >= {"model": "compact", "sweep": "s", "trial": "3"}.items()
    expected = {"model": "compact", "optimizer": "adam", "optimizer.lr": "0.01", "seed": "0"}
    expected |= {"experiment": "compact", "extra.depth": "2"}
    assert made.params.items() >= expected.items()


def test_run_name_of_the_configuration_wins() -> None:
    made = tracker(Trial(), "tracking.run_name=mine")
    assert isinstance(made, MlflowTracker)
    assert made.run_name == "mine"
    assert "trial" not in made.tags


def test_tracking_can_be_switched_off() -> None:
    assert type(tracker(Trial(), "tracking=none")) is Tracker
