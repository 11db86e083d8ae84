"""The root configuration and its checks across fields.

The files under conf/ start from the schemas (`/schema/<name>@_here_`), so a wrong type or a misspelt
key fails while Hydra composes the configuration, before anything is created. Each package keeps the
schemas of its own settings in its `config.py`.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep.architecture import CNNConfig as CNNConfig  # registers the schema
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.rules import NOT_EMPTY, SEED, Matching, problems
from mnist_sweep.common.schema import schema
from mnist_sweep.data.config import DataConfig
from mnist_sweep.sweep.config import SweepConfig
from mnist_sweep.tracking.config import TrackingConfig
from mnist_sweep.training.config import (
    EPOCH_METRICS,
    RUN_METRICS,
    TORCH_ARGUMENTS,
    SchedulerConfig,
    TrainerConfig,
)

_PACKAGE = Path(__file__).parent
# In a checkout conf/ lies beside the package, in a wheel inside it.
CONF_DIR = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())

DEVICE = Matching(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, cuda, cuda:N or mps")


@schema
class Config:
    model: Any = MISSING
    optimizer: Any = MISSING
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: Annotated[int, SEED] = 0
    device: Annotated[str, DEVICE] = "auto"
    objective: str = "val/accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    store: Annotated[str, NOT_EMPTY] = "mlruns"


def check(cfg: DictConfig) -> None:
    """Check the rules of all fields, and what no single field can say.

    Raises one UserError with every problem found.
    """
    found = problems(cfg, TORCH_ARGUMENTS)
    with suppress(OmegaConfBaseException):  # a value that is missing was found already
        found += _problems_across_fields(cfg)
    if found:
        raise UserError("; ".join(found))


def _problems_across_fields(cfg: DictConfig) -> Iterator[str]:
    if cfg.objective not in EPOCH_METRICS:
        hint = did_you_mean(cfg.objective, EPOCH_METRICS)
        yield f"objective={cfg.objective}: expected one of {', '.join(EPOCH_METRICS)}{hint}"
    if cfg.direction != (wanted := _direction(cfg.objective)):
        yield f"direction={cfg.direction}: objective={cfg.objective} needs {wanted}"
    for metric, direction in (cfg.sweep.objectives or {}).items():
        key, known = f"sweep.objectives={metric}", (*EPOCH_METRICS, *RUN_METRICS)
        if metric.startswith("test/"):
            yield (
                f"{key}: a search on the test set would spoil it; expected a metric of the "
                "validation set"
            )
        elif metric not in known:
            yield f"{key}: expected one of {', '.join(known)}{did_you_mean(metric, known)}"
        elif metric in EPOCH_METRICS and direction != (wanted := _direction(metric)):
            yield f"{key}: {direction}; expected {wanted}"


def _direction(metric: str) -> str:
    return "minimize" if metric.endswith("/loss") else "maximize"


def config_groups() -> str:
    """One line for each config group of conf/ with its choices, for --help."""
    groups = sorted(path for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra")
    choices = {group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in groups}
    return "\n".join(f"{name}: {', '.join(options)}" for name, options in choices.items())


OmegaConf.register_resolver("config_groups", config_groups, replace=True)
