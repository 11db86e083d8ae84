"""The sweep engine: grids and Optuna searches for Hydra applications, with asynchronous workers.

It imports `mnist_sweep.common` and nothing else of the project, neither torch nor mlflow.
"""

from mnist_sweep.sweep.callback import Sweep, SweepCallback
from mnist_sweep.sweep.trial import Trial, current_trial

__all__ = ["Sweep", "SweepCallback", "Trial", "current_trial"]
