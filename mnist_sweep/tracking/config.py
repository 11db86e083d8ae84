"""Settings of the record in MLflow."""

from typing import Literal

from mnist_sweep.common.schema import schema

UI_PORT = 5000  # default port of MLflow's UI, also in the links that a sweep prints


@schema
class TrackingConfig:
    enabled: bool = True
    # null: SQLite under `store`; or http://host:5000, postgresql://..., without a password
    uri: str | None = None
    experiment: str = "mnist_sweep"
    run_name: str | None = None
    log_model: bool = True
    register: str | None = "mnist-sweep"  # name under which a sweep registers its best model
    # pictures of a run; null: all, and of a trial a few (learning curves, confusion matrix)
    figures: Literal["all", "few", "none"] | None = None
    nested: bool = False  # trials under the run of their sweep, which hides them from the charts
