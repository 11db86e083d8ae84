"""Where the tools write their results: a directory under the store, and a run in MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from omegaconf import DictConfig

from mnist_sweep.common import signals
from mnist_sweep.common.configs import flatten
from mnist_sweep.common.files import make_folder
from mnist_sweep.tracking.run import MlflowRun, prepare, start_run, store_uri


def make_output_directory(store: str) -> Path:
    """Create a directory under `store`, named by date and time like the directory of a run."""
    now = datetime.now()
    directory = Path(store) / "outputs" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"
    make_folder(directory)
    return directory


@contextmanager
def open_run(cfg: DictConfig, name: str, tags: Mapping[str, str]) -> Iterator[MlflowRun]:
    """Open a run that records the settings `cfg` of a tool. SIGTERM closes it too."""
    uri = store_uri(cfg.tracking.uri, cfg.store)
    experiment_id = prepare(uri, cfg.store, cfg.tracking.experiment)
    with (
        signals.obeyed(),
        start_run(uri, experiment_id, name=name, tags=tags, params=flatten(cfg)) as run,
    ):
        yield run
