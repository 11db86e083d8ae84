"""Settings of the tools."""

from dataclasses import dataclass, field
from typing import Literal

from mnist_sweep.common.schema import schema
from mnist_sweep.data.config import DataConfig
from mnist_sweep.tracking.config import TrackingConfig


@schema
class EnsembleConfig:
    """Settings of `python -m mnist_sweep.ensemble`."""

    sweep: str | None = None  # the finished runs of this sweep
    runs: list[str] = field(default_factory=list)  # or these, by id
    rounds: int = 50  # of the greedy selection
    model_name: str = "ensemble"  # of the registered model
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: str = "mlruns"


@schema
class ReportConfig:
    """Settings of `python -m mnist_sweep.report`."""

    sweep: str = "latest"
    storage: str | None = None  # as `sweep.storage`
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: str = "mlruns"


@dataclass
class UseConfig:
    """What all tools that use a trained model are told."""

    # run id, models:/name@alias, directory of a run, .pt2; null: the champion, or the newest
    source: str | None = None  # on the command line: model=...
    allow_pickle: bool = False
    seed: int = 0
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    store: str = "mlruns"


@schema
class PredictConfig(UseConfig):
    format: Literal["csv", "json"] = "csv"
    probabilities: bool = False  # of all classes, not only the best


@schema
class EvaluateConfig(UseConfig):
    data: DataConfig = field(default_factory=DataConfig)
    robustness: bool = True  # on shifted, rotated, noisy, blurred and inverted copies


@schema
class ExportConfig(UseConfig):
    format: Literal["onnx", "pt2", "torchscript"] = "onnx"
    output: str | None = None  # file; null: model.<format> where the command runs
    data: DataConfig = field(default_factory=DataConfig)  # whose training images both are asked


@schema
class DemoConfig(UseConfig):
    models: list[str] = field(default_factory=list)  # best runs of the last sweep, by model=
    host: str = "127.0.0.1"
    port: int = 7860
    data: DataConfig = field(default_factory=DataConfig)  # for its test images


@schema
class PromoteConfig(UseConfig):
    data: DataConfig = field(default_factory=DataConfig)
    force: bool = False
