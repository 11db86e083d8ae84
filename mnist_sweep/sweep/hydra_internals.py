"""The private names of Hydra that the engine needs, in one place."""

from collections.abc import Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher as BasicLauncher
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.callback import SweepCallback


def check_flags(arguments: Sequence[str]) -> None:
    """Raise UserError for flags that Hydra does not have. Hydra itself would print its usage too."""
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}; --hydra-help lists the flags")

    parser.error = error  # type: ignore[method-assign]
    parser.parse_intermixed_args(arguments)


def sweep_callbacks(context: HydraContext) -> list[SweepCallback]:
    """The entries of `hydra.callbacks` that want to know about sweeps."""
    return [c for c in context.callbacks.callbacks if isinstance(c, SweepCallback)]


def without_callbacks(context: HydraContext) -> HydraContext:
    """The same context for the workers' own jobs, which would fire `on_job_start` for themselves."""
    return HydraContext(
        config_loader=context.config_loader,
        callbacks=Callbacks(),
        execution_whitelist=context.execution_whitelist,
    )


def config_directory(loader: ConfigLoader) -> Path | None:
    """The folder of the application's own configuration; None if it has none."""
    elements = loader.get_search_path().get_path()
    paths = [element.path for element in elements if element.provider == "main"]
    if not paths or paths[0] is None:
        return None
    scheme, _, rest = paths[0].rpartition("://")
    if scheme == "pkg":
        try:
            path = Path(str(files(rest.replace("/", ".").rstrip("."))))
        except ModuleNotFoundError:
            return None
    else:
        path = Path(rest)
    return path if path.is_dir() else None


def relocated(loader: ConfigLoader, directory: Path) -> ConfigLoader:
    """A loader that reads the application's own configuration from `directory` instead."""
    search_path = deepcopy(loader.get_search_path())
    main = next(element for element in search_path.get_path() if element.provider == "main")
    main.path = f"file://{directory}"
    return ConfigLoaderImpl(search_path)


def with_override(config: DictConfig, override: str) -> DictConfig:
    """Apply an override to a composed configuration, in place, with Hydra's own errors."""
    parsed = OverridesParser.create().parse_overrides([override])
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    return config


def job_error(job: JobReturn) -> BaseException | None:
    """The exception that ended a job. `JobReturn.return_value` would raise it and print a line."""
    return job._return_value if job.status is JobStatus.FAILED else None
