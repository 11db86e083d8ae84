"""Types, defaults and cross-field checks of every fixed setting.

The files under conf/ start from these classes (`/schema/<name>@_here_`), so a wrong type or a
misspelt key fails while Hydra composes the configuration, before anything is created.
"""

import inspect
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from mnist_sweep.errors import UserError, did_you_mean

# What an epoch reports; `objective` names one of them.
EPOCH_METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")

# Only code under these names is run for a `_target_`; MNIST_SWEEP_TRUST adds the user's packages.
# Narrow, because the configuration of somebody else's run is read too: torch.load would run a pickle.
TRUSTED = (
    *("mnist_sweep.models.*", "mnist_sweep.data.*", "mnist_sweep.sources.*"),
    *("torch.nn.*", "torch.optim.*", "torchvision.models.*"),
    *("optuna.samplers.*", "optuna.pruners.*"),
)

_PACKAGE = Path(__file__).parent
# In a checkout conf/ lies beside the package, in a wheel inside it.
CONF_DIR = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())

T = TypeVar("T")


@dataclass_transform(field_specifiers=(field,))
def schema(cls: type[T]) -> type[T]:
    """A dataclass that files under conf/ start from, as /schema/<its name without Config>."""
    made = dataclass(cls)
    name = cls.__name__.removesuffix("Config").lower() or "config"
    ConfigStore.instance().store(group="schema", name=name, node=made, provider="mnist_sweep")
    return made


@schema
class CNNConfig:
    """Arguments of `mnist_sweep.models.CNN`."""

    _target_: str = "mnist_sweep.models.CNN"
    stages: list[list[int]] = field(default_factory=list)  # channels of each stage's convolutions
    nf: int = 1  # what the numbers of `stages` are multiples of
    head: list[int] = field(default_factory=list)  # widths of the hidden linear layers
    kernel_size: int = 3
    padding: Literal["same", "valid"] = "same"
    activation: str = "ReLU"  # a class of torch.nn
    activate: Literal["conv", "stage"] = "conv"  # after every convolution, or once a stage
    batch_norm: bool = False  # after every convolution
    logits_batch_norm: bool = False
    bias: bool = True  # of the convolutions and of the logits
    pool: Literal["max", "none"] = "max"  # 2x2, stride 2, at the end of every stage
    dropout: float = 0.0  # after every hidden linear layer


@schema
class AdamConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@schema
class SGDConfig:
    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


@schema
class SchedulerConfig:
    interval: Literal["step", "epoch", "objective"] = "epoch"  # what its step() follows
    total_steps_as: str | None = None  # the factory's argument for the steps of the whole run
    factory: dict[str, Any] | None = None  # _target_ and arguments; null: constant learning rate


@dataclass
class AffineConfig:
    degrees: float = 10.0  # rotation in -degrees..degrees
    scale: float = 0.1  # size in 1-scale..1+scale
    shift_px: float = 2.0  # translation in pixels, both axes


@dataclass
class ExpectedConfig:
    """What is published of a dataset; null: not known."""

    train: int | None = None  # images
    test: int | None = None
    shape: tuple[int, int, int] | None = None  # (C, H, W)


@schema
class DataConfig:
    name: str = MISSING
    root: str = "${oc.env:MNIST_SWEEP_DATA,data}"
    source: dict[str, Any] = field(default_factory=dict)  # _target_(root, ...) -> data.Arrays
    classes: list[str] | None = None  # names in label order; null: 0, 1, 2, ...
    expected: ExpectedConfig = field(default_factory=ExpectedConfig)
    on_missing: Literal["embedded", "error"] = "error"  # only MNIST has an embedded stand-in
    batch_size: int = 64
    val_size: int = 5000  # images held out of the training set, stratified
    train_size: int | None = None  # images left to train on, stratified; null: all
    split_seed: int = "${seed}"  # type: ignore[assignment]  # an interpolation
    augment: Literal["none", "affine"] = "none"
    affine: AffineConfig = field(default_factory=AffineConfig)


@dataclass
class EarlyStoppingConfig:
    patience: int | None = None  # epochs without a better objective; null: never stop early
    min_delta: float = 0.0


@schema
class TrainerConfig:
    max_epochs: int = 10
    max_minutes: float | None = None  # of training; the epoch at hand is cut short
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    cuda_graphs: bool = False  # on a GPU a whole step is one launch
    grad_clip: float | None = None  # largest norm of the whole gradient
    label_smoothing: float = 0.0
    ema_decay: float | None = None  # weights averaged over the steps are validated, kept and saved
    micro_batch_size: int | None = None  # images of a pass; the gradients of a batch add up
    skip_easiest: float = 0.0  # share of a batch, of smallest loss, without a backward pass
    resize_from: float = 1.0  # height and width in the first epoch, as a share of the whole ...
    resize_epochs: float = 0.5  # ... which they reach after this share of the epochs
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    resume: str | None = None  # directory of the run to go on with


@schema
class TrackingConfig:
    enabled: bool = True
    uri: str | None = None  # null: SQLite under `store`; or http://host:5000, postgresql://...
    experiment: str = "mnist_sweep"
    run_name: str | None = None
    log_model: bool = True
    register: str | None = "mnist-sweep"  # name under which a sweep registers its best model
    # pictures of a run; null: all, and of a trial a few (learning curves, confusion matrix)
    figures: Literal["all", "few", "none"] | None = None
    nested: bool = False  # trials under the run of their sweep, which hides them from the charts


@schema
class SweepConfig:
    """A sweep: what `-m` runs."""

    name: str | None = None  # of the study and the directory; null: a new one from the time
    n_trials: int | None = None  # COMPLETE + PRUNED of the whole study; null: the grid, or 30
    n_jobs: int | None = None  # workers; null: 1 on the CPU, GPUs x trials_per_gpu otherwise
    trials_per_gpu: int = 1
    space: dict[str, Any] = field(
        default_factory=dict
    )  # parameter -> choice(), range(), interval()
    when: dict[str, Any] = field(default_factory=dict)  # parameter -> {other: values that allow it}
    sampler: dict[str, Any] | None = None  # a class of optuna.samplers; null: grid, or TPE
    pruner: dict[str, Any] | None = None  # a class of optuna.pruners; null: none
    objectives: dict[str, str] | None = None  # metric -> direction, for more than one; no pruning
    seed: int = "${seed}"  # type: ignore[assignment]  # of the sampler
    duplicates: Literal["allow", "skip"] = "allow"  # a point that was tried before
    max_failure_rate: float = 1.0  # failed trials / n_trials above which the sweep stops
    retries: int = 2  # of a trial whose process died
    grace_s: int = 60  # a worker that shows no sign of life for this long is dead
    trial_timeout_s: float | None = None  # after which a trial is ended and FAIL
    storage: str | None = None  # database URL; null: SQLite under `store`
    top_k: int | None = None  # keep the models of the best k trials; null: of all
    extend: bool = False  # allow another space on the same name
    dry_run: bool = False  # show what would run
    report: bool = True  # at the end, see `mnist_sweep.report`


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


@schema
class Config:
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    device: str = "auto"
    objective: str = "val/accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    store: str = "mlruns"


ABOVE_ZERO = (  # where they are set at all
    *("data.batch_size", "data.val_size", "data.train_size", "optimizer.lr", "trainer.max_epochs"),
    *("trainer.max_minutes", "trainer.grad_clip", "trainer.micro_batch_size"),
    "trainer.early_stopping.patience",
)


def check(cfg: DictConfig) -> None:
    """What no single field's type can say. Raises one UserError with every problem found."""
    problems = []

    def need(condition: bool, key: str, expected: str) -> None:
        if not condition:
            problems.append(f"{key}={OmegaConf.select(cfg, key)}: {expected}")

    if cfg.objective not in EPOCH_METRICS:
        hint = did_you_mean(cfg.objective, EPOCH_METRICS)
        problems.append(
            f"objective={cfg.objective}: expected one of {', '.join(EPOCH_METRICS)}{hint}"
        )
    for key in ("trainer.label_smoothing", "trainer.skip_easiest"):
        need(0 <= OmegaConf.select(cfg, key) < 1, key, "expected 0 or more and below 1")
    for key in ("trainer.resize_from", "trainer.resize_epochs"):
        need(0 < OmegaConf.select(cfg, key) <= 1, key, "expected a share above 0, at most 1")
    for key in ABOVE_ZERO:
        value = OmegaConf.select(cfg, key)
        need(value is None or value > 0, key, "expected a number above 0")
    for key in ("seed", "data.split_seed"):
        need(OmegaConf.select(cfg, key) >= 0, key, "expected 0 or more")
    wanted = "minimize" if cfg.objective.endswith("/loss") else "maximize"
    need(cfg.direction == wanted, "direction", f"objective={cfg.objective} needs {wanted}")
    decay = cfg.trainer.ema_decay
    need(decay is None or 0 < decay < 1, "trainer.ema_decay", "expected a number between 0 and 1")
    if problems:
        raise UserError("; ".join(problems))


def build(node: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Call the `_target_` of `node` with its arguments, `args`, and those of `kwargs` that it names.

    Raises:
        UserError: the target is not trusted, not found, or does not take its arguments.
    """
    factory = bind(node)
    named = inspect.signature(factory.func).parameters
    try:
        return factory(*args, **{key: value for key, value in kwargs.items() if key in named})
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot build {node._target_}: {error}") from error


def bind(node: DictConfig) -> "partial[Any]":
    """The `_target_` of `node` with its arguments, not called yet. Raises UserError like `build`."""
    target = str(node._target_)
    trusted = (*TRUSTED, *filter(None, os.environ.get("MNIST_SWEEP_TRUST", "").split(",")))
    try:
        bound = instantiate(node, _partial_=True, _convert_="all", _execution_whitelist_=trusted)
        assert isinstance(bound, partial)
        return bound
    except HydraException as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause.__cause__ or cause).split())
        if not any(target.startswith(pattern.rstrip("*")) for pattern in trusted):
            package = target.split(".", maxsplit=1)[0]
            reason = f"not trusted code; if you do trust it, set MNIST_SWEEP_TRUST={package}.*"
        raise UserError(f"cannot build {target}: {reason}") from error


def differences(old: DictConfig, new: DictConfig) -> list[str]:
    """What is set otherwise in `new`, but for where it runs and is recorded: 'key: old -> new'."""
    free = ("trainer.resume", "trainer.max_minutes", "tracking.", "sweep.", "store", "data.root")
    was, now = flatten(old), flatten(new)
    return [
        f"{key}: {was.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted({*was, *now})
        if was.get(key) != now.get(key) and not key.startswith(free)
    ]


def flatten(cfg: DictConfig) -> dict[str, str]:
    """The resolved configuration as {dotted key: value}."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = str(list(node) if isinstance(node, tuple) else node)  # as in a file

    walk("", OmegaConf.to_container(cfg, resolve=True))
    return flat
