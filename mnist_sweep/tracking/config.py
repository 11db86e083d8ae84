"""Settings of the record in MLflow."""

from typing import Annotated, Literal

from mnist_sweep.common.rules import NOT_EMPTY
from mnist_sweep.common.schema import schema

UI_PORT = 5000  # default port of MLflow's UI, also in the links that a sweep prints


@schema
class TrackingConfig:
    enabled: bool = True
    # null: SQLite under `store`; or http://host:5000, postgresql://..., without a password
    uri: Annotated[str | None, NOT_EMPTY] = None
    experiment: Annotated[str, NOT_EMPTY] = "mnist_sweep"
    run_name: Annotated[str | None, NOT_EMPTY] = None
    # while the server is away: record on disk and send it later, wait, or fail;
    # null: buffer, except that a command whose server is away from the start is refused
    on_outage: Literal["buffer", "wait", "fail"] | None = None
    log_model: bool = True
    # name under which a sweep registers its best model; null: none
    register: Annotated[str | None, NOT_EMPTY] = "mnist-sweep"
    # pictures of a run; null: all, and of a trial a few (learning curves, confusion matrix)
    figures: Literal["all", "few", "none"] | None = None
    nested: bool = False  # trials under the run of their sweep, which hides them from the charts
