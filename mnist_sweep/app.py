"""The command line: trains, sweeps, and dispatches the tools."""

import gc
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import mnist_sweep.common.build  # noqa: F401  reads MNIST_SWEEP_TRUST before a job can set it
from mnist_sweep import __version__, config
from mnist_sweep.common.config_errors import explain
from mnist_sweep.common.configs import is_under
from mnist_sweep.common.errors import UserError, did_you_mean, fail
from mnist_sweep.common.program import command_line, program
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.sweep import Trial, current_trial
from mnist_sweep.sweep.hydra_internals import check_flags
from mnist_sweep.sweep.overrides import to_text
from mnist_sweep.tools.command import TOOLS, list_tools, run_tool
from mnist_sweep.tracking.factory import make_tracker
from mnist_sweep.tracking.names import run_name

# By default Python collects cyclic garbage every 700 objects, a fifth of the time of the imports to come.
gc.set_threshold(10_000)

# Read before `main` sets the variable for its own purpose.
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
# what Hydra itself may instantiate from the configuration
HYDRA_TARGETS = (
    "mnist_sweep.callbacks.*",
    "mnist_sweep.tracking.callback.*",
    "mnist_sweep.report.callback.*",
    "mnist_sweep.sweep.plugin.*",
    "hydra.*",
    "hydra_plugins.*",
    "logging.*",
)
COMPOSED = threading.Event()  # set when a task starts: its configuration was composed


@hydra.main(
    config_path=str(config.CONF_DIR), config_name="config", execution_whitelist=HYDRA_TARGETS
)
def task(cfg: DictConfig) -> float:
    """Train once. Hydra calls this for `python -m mnist_sweep`, and a worker for every trial."""
    COMPOSED.set()
    trial = current_trial()
    try:
        return _train(cfg, trial)
    except (UserError, OmegaConfBaseException) as error:
        if trial.number is not None or WANTS_TRACEBACK:
            raise
        sys.exit(fail(explain(error)))  # here, because Hydra adds a line to an exception


def _train(cfg: DictConfig, trial: Trial) -> float:
    """Supply what `train` needs and Hydra's global state holds."""
    hydra_config = HydraConfig.get()
    # as written: an interpolation may resolve to a secret, or to nothing in Hydra's own configuration
    overrides: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    _check_mode(hydra_config.mode, overrides, cfg.sweep.own_keys)
    config.check(cfg)
    from mnist_sweep.training.run import train  # imports torch: not for --help or a config error

    directory = Path(hydra_config.runtime.output_dir)
    choices = {
        group: str(choice)
        for group, choice in hydra_config.runtime.choices.items()
        if group in cfg and group != "tracking"
    }
    tracker = make_tracker(
        cfg,
        name=run_name(trial, choices["model"]),
        choices=choices,
        overrides=overrides,
        directory=directory,
        trial=trial,
    )
    try:
        return train(cfg, directory, tracker, trial)
    except (KeyboardInterrupt, SystemExit):
        _say_how_to_resume(directory, trial)
        raise


def main() -> None:
    """Run the program with the arguments of the command line."""
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else ""
    if "--version" in arguments:
        print(f"mnist_sweep {__version__}")
    elif name == "tools":
        with suppress(BrokenPipeError):  # of `| head`
            print(list_tools(program()), flush=True)
    elif name in TOOLS:
        COMPOSED.set()  # run_tool raises a UserError if the composition fails
        _exit_on_error(lambda: run_tool(name, arguments[1:], program()))
    elif name and name[0] not in "-~" and "=" not in name:
        hint = did_you_mean(name, TOOLS)
        sys.exit(fail(f"{name}: no such tool{hint}; there are {', '.join(TOOLS)}"))
    else:
        # Hydra would print its errors and exit with 1. With this set it raises them.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        _exit_on_error(lambda: check_flags(arguments))
        _exit_on_error(task)


def _check_mode(mode: RunMode | None, overrides: Sequence[str], own_keys: Sequence[str]) -> None:
    """Raise UserError if a single run is given settings of a sweep, which would do nothing."""
    for override in overrides if mode is RunMode.RUN else ():
        if is_under(override.lstrip("+~").partition("=")[0], own_keys):
            raise UserError(
                f"{mask_url(override)} configures a sweep, and this is a single run: add -m"
            )


def _say_how_to_resume(directory: Path, trial: Trial) -> None:
    """After Ctrl-C in a single run, print the command that resumes it."""
    from mnist_sweep.training.checkpoint import LAST

    if trial.number is None and (directory / LAST).exists():
        resume = command_line(f"trainer.resume={to_text(str(directory))}")
        print(f"interrupted; resume with:\n  {resume}", file=sys.stderr)


def _exit_on_error(run: Callable[[], object]) -> None:
    """Word the user's mistakes in a line or two and exit with code 2."""
    if WANTS_TRACEBACK:
        run()
        return
    try:
        run()
    except (HydraException, OmegaConfBaseException, UserError) as error:
        sys.exit(fail(explain(error)))
    except ValueError as error:
        if COMPOSED.is_set():  # not a mistake in the command
            raise
        sys.exit(fail(explain(error)))
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror}; runs write below store=<folder>"
        sys.exit(fail(message))
    except KeyboardInterrupt:
        sys.exit(130)
