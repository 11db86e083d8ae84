"""Registers `hydra/callbacks=mlflow` for Hydra applications. The callback itself is in `tracking`."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

ARTIFACTS = ("*.log", "*.txt", "*.csv", "*.json", "*.yaml", "*.png", "*.svg", "*.pdf", "*.html")


@dataclass
class MlflowCallbackConfig:
    """Settings of `hydra.callbacks.mlflow`."""

    _target_: str = "mnist_sweep.tracking.hydra_callback.MlflowCallback"
    # URL of a server or a database, without a password; null: MLFLOW_TRACKING_URI, otherwise SQLite under
    # `store`
    tracking_uri: str | None = None
    experiment: str | None = None  # name in MLflow; null: hydra.job.name
    # folder of the default database and its files, below the directory where the command starts
    store: str = "mlruns"
    # which files of a job's output directory are kept in MLflow; **/*.png searches its folders too
    artifacts: list[str] = field(default_factory=lambda: list(ARTIFACTS))
    max_file_mb: float = 50  # size in megabytes above which a file is left out
    tags: dict[str, str] = field(default_factory=dict)  # of every run


@dataclass
class ReportCallbackConfig:
    """Settings of `hydra.callbacks.sweep_report`."""

    _target_: str = "mnist_sweep.report.callback.WriteStudyReport"


# The report comes last: sweeps end their callbacks in reverse order, and its files go into MLflow.
_NODE: dict[str, Any] = {"mlflow": MlflowCallbackConfig(), "sweep_report": ReportCallbackConfig()}
ConfigStore.instance().store(
    group="hydra/callbacks",
    name="mlflow",
    package="hydra.callbacks",
    node=_NODE,
    provider="mnist_sweep",
    replace=True,  # in a worker the store arrives with this entry before the module is imported
)
