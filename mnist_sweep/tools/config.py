"""Settings of the tools. Each class documents one tool: summary, description, settings."""
# ruff: noqa: RUF009  (`setting` returns a dataclasses.field)

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mnist_sweep.common.rules import NOT_EMPTY, SEED, above, at_least
from mnist_sweep.common.schema import schema
from mnist_sweep.data.config import DataConfig
from mnist_sweep.tracking.config import UI_PORT, TrackingConfig

PORT = at_least(0).at_most(65535)  # 0: the system chooses
STORE = "${oc.env:MNIST_SWEEP_STORE,mlruns}"


def setting(default: Any, comment: str) -> Any:
    """Declare a setting with its default and the comment that `--help` shows."""
    metadata = {"comment": comment}
    if isinstance(default, list | type):  # a mutable default needs a factory
        factory = default if isinstance(default, type) else default.copy
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class StoreConfig:
    """Settings of every tool that reads runs."""

    tracking: TrackingConfig = setting(TrackingConfig, "the MLflow store")
    store: Annotated[str, NOT_EMPTY] = setting(STORE, "folder of all runs")


@dataclass
class LoadingConfig(StoreConfig):
    """Settings of every tool that loads trained models."""

    trust: bool = setting(
        False,
        "load a .pt2 or a model of another program too: loading this file can run any code in it",
    )
    seed: Annotated[int, SEED] = setting(0, "seed of the data's splits")


@dataclass
class ModelToolConfig(LoadingConfig):
    """Settings of every tool that loads the model that the user names."""

    source: Annotated[str | None, NOT_EMPTY] = setting(  # on the command line: model=...
        None,
        "run id, models:/name@alias, models:/name/version, run directory or exported .pt2; "
        "null: the champion, else the challenger, else the newest run",
    )


@schema
class PredictConfig(ModelToolConfig):
    """Classify image files.

    Prints one line for each file, as CSV or JSON. A folder stands for all images in it. The exit
    code is 1 if a file cannot be read.
    """

    files: Annotated[list[str], NOT_EMPTY] = setting(
        [], "image files and folders"
    )  # on the command line: without a key
    format: Literal["csv", "json"] = setting("csv", "csv or json")
    probabilities: bool = setting(False, "print the probabilities of all classes")


@schema
class EvaluateConfig(ModelToolConfig):
    """Measure a trained model on test images.

    Prints accuracy, loss, calibration error and the scores of each class, and records them in
    MLflow. Uses the dataset that the model was trained on, unless data=... names another.
    """

    data: DataConfig = setting(DataConfig, "dataset whose test images are used")
    robustness: bool = setting(
        True, "also measure on shifted, rotated, noisy, blurred and inverted images"
    )


@schema
class ExportConfig(ModelToolConfig):
    """Export a trained model to a file.

    Reads the file back and compares its logits with the model's. The exit code is 1 if they differ.
    """

    format: Literal["onnx", "pt2", "torchscript"] = setting("onnx", "onnx, pt2 or torchscript")
    output: Annotated[str | None, NOT_EMPTY] = setting(
        None, "path of the file; null: model.onnx, model.pt2 or model.pt in the current folder"
    )
    data: DataConfig = setting(DataConfig, "dataset whose images the comparison uses")


@schema
class PromoteConfig(LoadingConfig):
    """Make the challenger the champion if it is significantly better.

    A sweep registers its best model as the challenger. This tool compares it with the champion by
    McNemar's exact test. The images that validated both decide. With data=..., or if there are fewer
    than 100 such images, the test images decide.
    """

    data: DataConfig = setting(DataConfig, "dataset to compare on, by default that of training")
    force: bool = setting(False, "promote the challenger even if it is not better")


@schema
class EnsembleConfig(StoreConfig):
    """Combine the models of a sweep.

    Selects models on the validation images, measures the ensemble on the test images, and registers
    it as one model. Name either a sweep or at least two runs.
    """

    sweep: Annotated[str | None, NOT_EMPTY] = setting(
        None, "name of the sweep whose finished runs are combined"
    )
    runs: Annotated[list[str], NOT_EMPTY] = setting([], "ids of the runs, separated by commas")
    rounds: Annotated[int, above(0)] = setting(50, "rounds of the greedy selection")
    model_name: Annotated[str, NOT_EMPTY] = setting("ensemble", "name of the registered model")


@schema
class DemoConfig(ModelToolConfig):
    """Serve a page to draw digits on.

    The page shows what one or several models recognise. It runs until Ctrl-C.
    """

    models: Annotated[list[str], NOT_EMPTY] = setting(
        [], "show the best run of each of these model types in the last sweep, e.g. simple,vgg"
    )
    host: Annotated[str, NOT_EMPTY] = setting("127.0.0.1", "address to serve on")
    port: Annotated[int, PORT] = setting(7860, "port to serve on, if it is free")
    data: DataConfig = setting(DataConfig, "dataset whose test images the page offers")


@schema
class ReportConfig(StoreConfig):
    """Write the report of a sweep.

    Every sweep writes its report when it ends. This tool writes it again, or while the sweep runs.
    """

    sweep: Annotated[str, NOT_EMPTY] = setting(
        "latest", "name of the sweep; latest: the one that started last"
    )
    storage: Annotated[str | None, NOT_EMPTY] = setting(
        None, "URL of the sweep's database, as sweep.storage"
    )


@schema
class UiConfig:
    """Start MLflow's UI.

    Prints links to all runs and to the comparison of a sweep, or of several. It runs until Ctrl-C.
    """

    sweep: list[str] = setting([], "names of the sweeps to compare, e.g. a,b; by default the last")
    port: Annotated[int, PORT] = setting(UI_PORT, "port to serve on, if it is free")
    dashboard: bool = setting(False, "also start optuna-dashboard")
    store: Annotated[str, NOT_EMPTY] = setting(STORE, "folder of all runs")


@dataclass
class CheckDataConfig(StoreConfig):
    """Check a dataset before training.

    Prints the result of each check, and draws the class distribution and sample images. Takes the
    same settings as a training run. The exit code is 1 if a check fails.
    """

    # not a schema: conf/config.yaml defines these settings
    data: DataConfig = setting(DataConfig, "dataset to check")
    seed: Annotated[int, SEED] = setting(0, "seed of the data's splits and of the samples")
