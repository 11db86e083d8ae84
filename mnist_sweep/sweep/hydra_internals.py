"""The private names of Hydra that the engine needs, in one place."""

from copy import deepcopy
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_launcher import BasicLauncher as BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext

from mnist_sweep.sweep.callback import SweepCallback


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


def config_directory(loader: ConfigLoader) -> Path:
    """The folder of the application's own configuration."""
    elements = loader.get_search_path().get_path()
    main = next(element for element in elements if element.provider == "main")
    return Path(main.path.removeprefix("file://"))


def relocated(loader: ConfigLoader, directory: Path) -> ConfigLoader:
    """A loader that reads the application's own configuration from `directory` instead."""
    search_path = deepcopy(loader.get_search_path())
    main = next(element for element in search_path.get_path() if element.provider == "main")
    main.path = f"file://{directory}"
    return ConfigLoaderImpl(search_path)


def job_error(job: JobReturn) -> BaseException | None:
    """The exception that ended a job. `JobReturn.return_value` would raise it and print a line."""
    return job._return_value if job.status is JobStatus.FAILED else None
