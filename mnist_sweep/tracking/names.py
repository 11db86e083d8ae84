"""Names of runs: what varies, in a few words. Light: imports no library."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mnist_sweep.sweep.trial import Trial

SHORT = {  # how papers and plots abbreviate
    "batch_size": "bs",
    "learning_rate": "lr",
    "max_epochs": "epochs",
    "weight_decay": "wd",
}
MAX_SWEEP, MAX_PARAMS = 30, 60  # characters; the UI cuts off what is longer


def run_name(trial: Trial, model: str) -> str:
    """Return the name of a run, for example `night/3 simple lr=2.7e-3 bs=128`.

    A run outside of a sweep is named by its model and the time.
    """
    if trial.number is None:
        return f"{model} {time.strftime('%Y-%m-%d %H:%M')}"
    name = f"{_cut(str(trial.sweep), MAX_SWEEP)}/{trial.number} {describe(trial.params)}"
    return name.rstrip()


def describe(params: Mapping[str, Any]) -> str:
    """Describe a point of a search space: {"optimizer.lr": 0.0027, "model": "vgg"} is `vgg lr=2.7e-3`.

    The choices of config groups come first.
    """
    keys = {name: name.lstrip("+").rpartition(".")[2] for name in params}
    n_uses = Counter(keys.values())
    choices, values = [], []
    for name, value in params.items():
        key = keys[name]
        if key == name and isinstance(value, str):  # a config group, or a setting such as device
            choices.append(value)
        else:
            label = SHORT.get(key, key) if n_uses[key] == 1 else name
            values.append(f"{label}={short(value)}")
    return _cut(" ".join(choices + values), MAX_PARAMS)


def short(value: Any) -> str:
    """Write a number with two or three significant digits, and anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:.3g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if exponent else mantissa  # inf, nan


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
