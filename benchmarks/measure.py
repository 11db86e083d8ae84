"""Helpers of all benchmarks: a row of the table, alternating measurements, timed commands."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    unit: str
    ours: float
    peer: float | None = None  # the same measurement of a program to compare with
    target: float | None = None  # for the ratio ours / peer, or for `ours` without a peer
    bound: Literal["at least", "at most"] = "at most"  # how the target is meant
    interval: tuple[float, float] | None = None  # of `ours`, with 95 % confidence

    @property
    def ratio(self) -> float | None:
        return None if self.peer is None else self.ours / self.peer

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value >= self.target if self.bound == "at least" else value <= self.target

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def alternating_medians(measure: Mapping[str, Callable[[], float]], n: int) -> dict[str, float]:
    """Call each function n times in alternation, after one round of warm-up. Return the medians."""
    rounds = [{name: call() for name, call in measure.items()} for _ in range(n + 1)][1:]
    return {name: statistics.median(results[name] for results in rounds) for name in measure}


def run_command(
    *arguments: str,
    program: Sequence[str] = ("-m", "mnist_sweep"),
    exit_code: int = 0,
    python: str = sys.executable,
) -> tuple[float, str]:
    """Run a Python program in its own process. Return its seconds and its standard output.

    Raises:
        RuntimeError: the exit code is not `exit_code`.
    """
    started = time.monotonic()
    command = [python, *program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if done.returncode != exit_code:
        output = f"{done.stdout[-1000:]}\n{done.stderr[-1000:]}"
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{output}")
    return seconds, done.stdout
