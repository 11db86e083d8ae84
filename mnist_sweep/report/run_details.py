"""Load what MLflow recorded about the best runs of a sweep."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mnist_sweep.analysis import metrics
from mnist_sweep.analysis.predictions import Predictions, load_data, load_predictions
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.sweep.results import Configuration
from mnist_sweep.tracking import queries
from mnist_sweep.tracking.queries import History, Run

log = logging.getLogger(__name__)

N_BEST = 5  # configurations to load details of
CURVES = ("train/loss", "val/loss")


@dataclass(frozen=True)
class RunDetails:
    """Details about the runs of the best trials. Empty if the sweep was not tracked."""

    runs: dict[int, Run] = field(default_factory=dict)  # {trial number: run}, best first
    histories: dict[str, History] = field(default_factory=dict)  # {trial number and name: curves}
    predictions: Predictions | None = None  # of `runs`, in the same order
    data: Dataset | None = None

    def correct(self) -> dict[int, NDArray[np.bool_]]:
        """Return {trial number: whether it predicts each validation image correctly, [N_val]}.

        The result is empty if the runs have no predictions or different validation images.
        """
        if self.predictions is None or self.predictions.val is None:
            return {}
        correct = ~metrics.errors(self.predictions.val, self.predictions.val_labels)
        return dict(zip(self.runs, correct, strict=True))


def load_run_details(
    configurations: Sequence[Configuration], uri: str | None, experiment: str, sweep: str
) -> RunDetails:
    """Load the details of the best configurations, from the run of each one's first trial.

    Args:
        configurations: best first.
        uri: MLflow's tracking URI; None if the sweep was not tracked.
        experiment: name of the MLflow experiment.
        sweep: name of the sweep.
    """
    if uri is None:
        return RunDetails()
    names = {each.trials[0].number: each.name for each in configurations[:N_BEST]}
    runs = queries.best_runs_of(uri, experiment, sweep, list(names))
    if not runs:
        return RunDetails()
    histories = {
        f"{number}: {names[number]}": queries.history(uri, run.info.run_id, CURVES)
        for number, run in runs.items()
    }
    try:
        predictions = load_predictions(uri, list(runs.values()))
    except UserError as error:
        log.warning("the report has no confusion matrices: %s", error)
        return RunDetails(runs, histories)
    return RunDetails(runs, histories, predictions, load_data(uri, predictions))
