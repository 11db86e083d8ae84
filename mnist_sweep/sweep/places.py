"""The places of trials in their study. A retry takes the place of the trial that it retries."""

import copy
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from mnist_sweep.sweep.study import FIRST, REPLACED, SURPLUS


def first_attempt(trial: FrozenTrial) -> int:
    """The number of the first attempt at a trial. Its own, unless it is a retry."""
    return int(trial.user_attrs.get(FIRST, trial.number))


class Places:
    """Shows the trials of a study as if none had been replaced.

    It keeps the copies that it makes: a study of 10,000 trials is shown again and again.
    """

    def __init__(self) -> None:
        self._copies: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}  # by number: trial and copy

    def arrange(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Leave out the replaced trials, and number the others by their places.

        A place is the number of trials before it, without retries and surplus trials. A duplicate
        has a place of its own, because the draw that replaces it needs another seed.

        Args:
            trials: all trials of the study, by number.
        """
        n_places, places, shown = 0, {}, []
        for trial in trials:
            attributes = trial.user_attrs
            if FIRST not in attributes:
                places[trial.number] = n_places
                n_places += attributes.get(REPLACED) != SURPLUS
            if REPLACED not in attributes:
                place = places[attributes.get(FIRST, trial.number)]
                shown.append(trial if trial.number == place else self._renumbered(trial, place))
        return sorted(shown, key=lambda trial: trial.number)

    def _renumbered(self, trial: FrozenTrial, place: int) -> FrozenTrial:
        original, copied = self._copies.get(trial.number, (None, trial))
        if original is not trial or copied.number != place:
            copied = copy.copy(trial)
            copied.number = place
            self._copies[trial.number] = trial, copied
        return copied
