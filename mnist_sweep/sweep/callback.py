"""The hooks around a sweep, for Hydra callbacks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

if TYPE_CHECKING:
    from optuna import Study as Study


@dataclass
class Sweep:
    """A sweep as its callbacks see it. They may change `overrides`, `tags`, `links`, `settings.preload`.

    Attributes:
        settings: of the sweep, see `mnist_sweep.sweep.config.SweepConfig`.
        objectives: direction of each objective by its name.
        config: the configuration without the trials' parameters.
        example: the configuration of one point of the space.
        variations: configurations that differ from `example` in the value of one parameter.
        parameters: names of the parameters that vary.
        overrides: overrides of every trial; may change in `on_sweep_prepare`.
        tags: tags for the record of every trial; read after `on_sweep_start`.
        links: what the summary at the end prints, as {label: URL or command}.
    """

    name: str
    directory: Path
    settings: DictConfig
    objectives: dict[str, str]
    config: DictConfig
    example: DictConfig
    parameters: list[str]
    overrides: list[str]
    tags: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    variations: list[DictConfig] = field(default_factory=list)


class SweepCallback(Callback):
    """A Hydra callback (an entry of `hydra.callbacks`) that the sweeper calls around a sweep.

    Hydra's own `on_multirun_start` runs before the sweep was checked, and its errors become warnings.
    An error raised here ends the command.
    """

    def on_sweep_prepare(self, sweep: Sweep) -> None:
        """Called after the sweep was checked and before anything is created."""

    def on_sweep_start(self, sweep: Sweep, study: "Study") -> None:
        """Called before the first trial."""

    def on_sweep_end(self, sweep: Sweep, study: "Study", error: BaseException | None) -> None:
        """Called after the last trial, or with the error or signal that ended the sweep early."""
