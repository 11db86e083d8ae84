"""What all parts of the benchmark share: a row of the table, sizes, turns, calls."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import hydra
from omegaconf import DictConfig

from mnist_sweep.config import CONF_DIR


@dataclass(frozen=True)
class Row:
    """One line of the table; the bar is for the ratio where there is a peer, else for `ours`."""

    what: str
    unit: str
    ours: float
    peer: float | None = None
    bar: float | None = None  # None: told for information
    needs: Literal["at least", "at most"] = "at most"

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        if self.bar is None:
            return None
        judged = self.ours if self.ratio is None else self.ratio
        return judged >= self.bar if self.needs == "at least" else judged <= self.bar

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    turns: int  # of each side
    images: Mapping[str, int]  # model -> images a turn of the training
    run_images: int | None  # of the run whose memory is measured; None: all
    tracked_images: int
    trials: int  # of the sweep that is recorded
    uneven_seeds: int  # times the four lengths of the uneven trials
    uneven_images: int
    searched: tuple[int, int]  # trials and images of the searches that are compared
    filled: tuple[int, int]  # which trials of a long study are timed
    reported: int  # runs of the sweep whose report is timed


FULL = Sizes(
    turns=5,
    images={"simple": 6400, "deeper": 3200, "vgg": 640},
    run_images=None,
    tracked_images=6400,
    trials=22,
    uneven_seeds=10,
    uneven_images=2000,
    searched=(30, 4000),
    filled=(1000, 5000),
    reported=2000,
)
QUICK = Sizes(
    turns=1,
    images={"simple": 640, "deeper": 320, "vgg": 64},
    run_images=640,
    tracked_images=640,
    trials=3,
    uneven_seeds=1,
    uneven_images=100,
    searched=(2, 100),
    filled=(25, 35),
    reported=12,
)


def medians(turns: Mapping[str, Callable[[], float]], n: int) -> dict[str, float]:
    """Of `n` turns of each, in rotation, after one that warms up."""
    results = [{name: turn() for name, turn in turns.items()} for _ in range(n + 1)][1:]
    return {name: statistics.median(r[name] for r in results) for name in turns}


def call(
    *arguments: str,
    program: Sequence[str] = ("-m", "mnist_sweep"),
    exit_code: int = 0,
    python: str = sys.executable,
) -> float:
    """The command line in a process of its own: seconds. Raises RuntimeError on another exit code."""
    started = time.monotonic()
    command = [python, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != exit_code:
        output = f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return seconds


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF_DIR)):
        return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
