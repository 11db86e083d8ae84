"""The command line: Hydra's, with mistakes told in a line or two and exit code 2."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mnist_sweep import config
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.tools import config as _tools_config  # noqa: F401  registers the schemas

# Python looks for cyclic garbage at every 700 objects: a fifth of the time of the imports to come.
gc.set_threshold(10_000)

# Read before `main` sets it for its own purpose.
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
BEGUN = threading.Event()  # the task, after its configuration was composed


@hydra.main(config_path=str(config.CONF_DIR), config_name="config")
def task(cfg: DictConfig) -> float | None:
    """One run: what Hydra calls for `python -m mnist_sweep`, and a worker for every trial."""
    with mistakes_told():
        config.check(cfg)
        from mnist_sweep.training.run import (
            train,  # imports torch: not for --help or a config error
        )

        return train(cfg)


@contextmanager
def mistakes_told() -> Iterator[None]:
    """A UserError inside ends the process with its line and exit code 2; in a sweep it goes on up."""
    BEGUN.set()
    try:
        yield
    except UserError as error:
        if HydraConfig.get().mode is RunMode.MULTIRUN or WANTS_TRACEBACK:
            raise
        sys.exit(_fail(str(error)))


def main(task: Callable[[], Any] = task) -> None:
    """Run a task that @hydra.main made; the tools bring their own."""
    if WANTS_TRACEBACK:
        task()
        return
    # Hydra would print its errors and exit with 1; asked for the exception, it lets us word them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        task()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        sys.exit(_fail(_explain(error)))
    except ValueError as error:
        if BEGUN.is_set():  # the composition is behind us: not a mistake of the command
            raise
        sys.exit(_fail(_explain(error)))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_fail(f"{error.filename}: {error.strerror}; runs write under store=<folder>"))
    except KeyboardInterrupt:
        sys.exit(130)


def tool(config_name: str, do: Callable[[DictConfig], None]) -> None:
    """The command line of a tool: `do` with what conf/<config_name>.yaml and the arguments make."""

    @hydra.main(config_path=str(config.CONF_DIR), config_name=config_name)
    def task(cfg: DictConfig) -> None:
        with mistakes_told():
            do(cfg)

    main(task)


def name_the_model() -> None:
    """`model=` and `models=a,b` of the tools that use trained ones.

    Elsewhere `model` is a config group, into which Hydra would look, and a comma makes a sweep.
    """
    for i, argument in enumerate(sys.argv):
        name, _, value = argument.partition("=")
        if name == "model":
            quoted = value.replace("'", "\\'")
            sys.argv[i] = f"source='{quoted}'"
        elif name == "models":
            sys.argv[i] = f"models=[{value.strip('[]')}]"


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _explain(error: Exception) -> str:
    """The error of a composition in a line or two, with the choices that would have worked."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        hint = did_you_mean(choice, error.options)
        options = ", ".join(error.options) or "none"
        return f"{group}={choice}: no such choice{hint}; there are {options}"
    cause = error.__cause__ or error
    message = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if not isinstance(cause, OmegaConfBaseException):
        return str(error).strip()
    key = cause.full_key or str(cause.key)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        choices = [str(k) for k in cause.parent_node if not str(k).startswith("_")]
        hint = did_you_mean(str(cause.key), choices)
        return f"{key}: no such key{hint}; there are {', '.join(choices) or 'none'}"
    reason = str(cause.msg or cause).splitlines()[0]
    return f"{key}: {reason}" if key and key != "None" else (message or reason)
