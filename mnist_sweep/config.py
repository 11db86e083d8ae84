"""The root configuration and its checks across fields.

The files under conf/ start from the schemas (`/schema/<name>@_here_`), so a wrong type or a misspelt
key fails while Hydra composes the configuration, before anything is created. Each package keeps the
schemas of its own settings in its `config.py`.
"""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING, DictConfig, OmegaConf

from mnist_sweep.architecture import CNNConfig as CNNConfig  # registers the schema
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.schema import schema
from mnist_sweep.data.config import DataConfig
from mnist_sweep.sweep.config import SweepConfig
from mnist_sweep.tracking.config import TrackingConfig
from mnist_sweep.training.config import EPOCH_METRICS, SchedulerConfig, TrainerConfig

_PACKAGE = Path(__file__).parent
# In a checkout conf/ lies beside the package, in a wheel inside it.
CONF_DIR = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())


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

    for metric in cfg.sweep.objectives or ():
        if metric.startswith("test/"):
            problems.append(
                f"sweep.objectives={metric}: a search on the test set would spoil it; expected a "
                "metric of the validation set"
            )
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


def config_groups() -> str:
    """One line for each config group of conf/ with its choices, for --help."""
    groups = sorted(path for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra")
    choices = {group.name: sorted(file.stem for file in group.glob("*.yaml")) for group in groups}
    return "\n".join(f"{name}: {', '.join(options)}" for name, options in choices.items())


OmegaConf.register_resolver("config_groups", config_groups, replace=True)
