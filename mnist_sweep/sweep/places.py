"""The places of trials in their study. A retry takes the place of the trial that it retries."""

import copy
from bisect import bisect_left
from collections.abc import Sequence

from optuna.trial import FrozenTrial, Trial

from mnist_sweep.sweep.study import FIRST, REPLACED, SURPLUS


def first_attempt(trial: FrozenTrial | Trial) -> int:
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
        shown = []
        skipped: list[int] = []  # numbers without a place of their own, in order
        for trial in trials:
            number, attributes = trial.number, trial.user_attrs
            first = attributes.get(FIRST, number)
            if REPLACED not in attributes:
                place = first - bisect_left(skipped, first)
                shown.append(trial if number == place else self._renumbered(trial, place))
            if first != number or attributes.get(REPLACED) == SURPLUS:
                skipped.append(number)
        return sorted(shown, key=lambda trial: trial.number) if skipped else shown

    def _renumbered(self, trial: FrozenTrial, place: int) -> FrozenTrial:
        original, copied = self._copies.get(trial.number, (None, trial))
        if original is not trial or copied.number != place:
            copied = copy.copy(trial)
            copied.number = place
            self._copies[trial.number] = trial, copied
        return copied
