"""What the record of a Hydra job holds: its settings, what it returned, its files."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep.common.configs import flatten_tree
from mnist_sweep.common.secrets import mask_override, masked
from mnist_sweep.tracking.view import final_metric

log = logging.getLogger(__name__)

RETURN_VALUE = "return_value"  # metric of a job whose objective has no name
MAX_KEY = 250  # characters of a parameter's or a metric's name in MLflow


def settings(config: DictConfig) -> dict[str, Any]:
    """Return the application's configuration: without Hydra's part and secrets, resolved if it can be."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        container = OmegaConf.to_container(own, resolve=True, enum_to_str=True)
    except OmegaConfBaseException:  # the task may never read the part that does not resolve
        container = OmegaConf.to_container(own, resolve=False, enum_to_str=True)
    without_secrets: dict[str, Any] = masked(container)
    return without_secrets


def overrides(config: DictConfig) -> list[str]:
    """Return the overrides of a job, without secrets."""
    return [mask_override(each) for each in config.hydra.overrides.task]


def params(config: DictConfig, varied: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a job's run: what varies, the settings, and the choices of groups."""
    known = {name.lstrip("+"): str(value) for name, value in varied.items()}
    choices = {
        group: str(choice)
        for group, choice in config.hydra.runtime.choices.items()
        if not group.startswith("hydra/")
    }
    everything = known | flatten_tree(settings(config)) | choices
    return {key(name): value for name, value in everything.items() if name}


def overridden(config: DictConfig) -> dict[str, Any]:
    """Return {key or group: value} of the overrides of a job, without secrets."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    values = {each.get_key_element(): each.value() for each in parsed if not each.is_delete()}
    without_secrets: dict[str, Any] = masked(values)
    return without_secrets


def swept(config: DictConfig) -> list[str]:
    """Return the names of the parameters that a sweeper of Hydra varies."""
    of_sweeper = config.hydra.sweeper.get("params") or {}
    written = [*config.hydra.overrides.task, *(f"{k}={v}" for k, v in of_sweeper.items())]
    parsed = OverridesParser.create().parse_overrides(written)
    return list(dict.fromkeys(each.key_or_group for each in parsed if each.is_sweep_override()))


def metrics(returned: Any, objectives: Sequence[str]) -> dict[str, float]:
    """Return the metrics in what a task returned: a number, a list or a dictionary of numbers.

    Args:
        objectives: names of the numbers, if they are known.
    """
    many = returned if isinstance(returned, list | tuple) else [returned]
    if isinstance(returned, Mapping):
        named = {str(name): value for name, value in returned.items()}
    elif len(objectives) == len(many):
        named = dict(zip(map(final_metric, objectives), many, strict=True))
    elif many is returned:
        named = {f"{RETURN_VALUE}/{i}": value for i, value in enumerate(many)}
    else:
        named = {RETURN_VALUE: returned}
    numbers = {key(name): _number(value) for name, value in named.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def _number(value: Any) -> float | None:
    """Return a number of Python, NumPy or torch as float; None for anything else."""
    if value is None or isinstance(value, str | bytes | bool):
        return None
    with suppress(TypeError, ValueError, RuntimeError):  # torch raises the last for many elements
        return float(value)
    return None


def key(name: str) -> str:
    """Return the name with other characters than MLflow allows replaced."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:MAX_KEY]


def output_files(directory: Path, patterns: Iterable[str], max_mb: float) -> list[Path]:
    """Return the files in a job's output directory that match a pattern and are small enough."""
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    kept = [path for path in sorted(found) if path.stat().st_size <= max_mb * 1e6]
    for path in sorted(found.difference(kept)):
        log.info("not recorded, because it is larger than %g MB: %s", max_mb, path)
    return kept
