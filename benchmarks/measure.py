"""What all parts of the benchmark share: a row of the table, turns, calls."""

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


def medians(turns: Mapping[str, Callable[[], float]], n: int) -> dict[str, float]:
    """Of `n` turns of each, in rotation, after one that warms up."""
    results = [{name: turn() for name, turn in turns.items()} for _ in range(n + 1)][1:]
    return {name: statistics.median(r[name] for r in results) for name in turns}


def call(
    *arguments: str,
    program: Sequence[str] = ("-m", "mnist_sweep"),
    exit_code: int = 0,
    python: str = sys.executable,
) -> tuple[float, str]:
    """The command line in a process of its own: seconds, output. RuntimeError on another exit code."""
    started = time.monotonic()
    command = [python, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != exit_code:
        output = f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
    return seconds, done.stdout


def compose(overrides: Sequence[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF_DIR)):
        return hydra.compose("config", list(overrides))
