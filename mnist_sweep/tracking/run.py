"""One run in MLflow: opened, written, and closed with the right status."""

import json
import logging
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
import numpy as np
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common import processes, sqlite
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.files import make_database, make_folder
from mnist_sweep.common.secrets import mask_in, mask_url, masked
from mnist_sweep.tracking import provenance
from mnist_sweep.tracking.queries import connect, find_runs, store_errors, tag_is
from mnist_sweep.tracking.retry import RETRY_FOR_S, retried
from mnist_sweep.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PARAM_LIMIT = 6000  # characters of a parameter's value


def store_uri(uri: str | None, store: str, key: str = "tracking.uri") -> str:
    """Return the tracking URI: `uri`, or by default SQLite under the folder `store`.

    The user and the password of a server's URL move into MLflow's own variables, because MLflow prints
    the URL of every run, and quotes it in errors.

    Args:
        key: the setting that names the store, for errors.

    Raises:
        UserError: the URL contains another kind of secret, which MLflow would not send to the server.
    """
    if not uri:
        return f"sqlite:///{Path(store).resolve()}/mlflow.db"
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    if parts.username and parts.password:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
        uri = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if mask_url(uri) != uri:
        raise UserError(
            f"{key}={mask_url(uri)}: expected user:password; a token goes into MLFLOW_TRACKING_TOKEN"
        )
    return uri


def prepare(uri: str, store: str, experiment: str) -> str:
    """Create the store and the experiment if needed, and close the runs of dead processes.

    A file lock protects the creation: two processes that create one SQLite file corrupt it. MLflow
    waits for a server that is away: `check_store` refuses it at once.

    Returns:
        The experiment's id.

    Raises:
        UserError: the database does not open, or `store` is not writable.
    """
    folder = Path(store).resolve()
    try:
        make_folder(folder)
        with store_errors(uri), FileLock(folder / "mlflow.lock", timeout=RETRY_FOR_S):
            if uri == store_uri(None, store):
                make_database(folder / "mlflow.db")
                make_folder(folder / "artifacts")
            mlflow.set_tracking_uri(uri)
            client = MlflowClient(uri)
            if uri.startswith("sqlite:") and client.get_experiment_by_name(experiment) is None:
                location = (folder / "artifacts").as_uri()
                client.create_experiment(experiment, artifact_location=location)
            experiment_id: str = mlflow.set_experiment(experiment).experiment_id
            close_dead_runs(client, experiment_id)
    except OSError as error:
        raise UserError(f"cannot write to store={store} ({error.strerror or error})") from error
    return experiment_id


def check_store(uri: str, key: str = "tracking.uri") -> None:
    """Raise UserError if no store can be opened or created at `uri`, the value of the setting `key`."""
    if uri.startswith("sqlite:///"):
        sqlite.check_file(Path(uri.removeprefix("sqlite:///")), f"{key}={uri}")
    else:
        connect(uri, key)


def close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Mark runs KILLED that a SIGKILL or a power cut left RUNNING on this machine."""
    for run in find_runs(client, [experiment_id], "attributes.status = 'RUNNING'"):
        if processes.is_dead(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")
            log.info("marked run %s KILLED: its process is dead", run.info.run_name)


class MlflowRun(Tracker):
    """Writes one open MLflow run."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        entities = [Metric(name, value, now_ms, step) for name, value in metrics.items()]
        retried(partial(self.client.log_batch, self.run_id, metrics=entities))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        entities = [RunTag(name, value) for name, value in tags.items()]
        retried(partial(self.client.log_batch, self.run_id, tags=entities))

    def log_params(self, params: Mapping[str, str]) -> None:
        entities = [Param(k, mask_url(v)[:PARAM_LIMIT]) for k, v in params.items()]
        for first in range(0, len(entities), 100):  # MLflow's limit for one call
            batch = entities[first : first + 100]
            retried(partial(self.client.log_batch, self.run_id, params=batch))

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        # with our digest, because MLflow computes its own from a sample
        entity = DatasetEntity(
            name=name,
            digest=sha256[:36],  # MLflow's limit; the tag `data.sha256` has all of it
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(sizes)),
        )
        retried(partial(self.client.log_inputs, self.run_id, [DatasetInput(entity, [])]))

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            retried(partial(self.client.log_artifacts, self.run_id, folder))

    def log_image(self, key: str, image: NDArray[np.uint8]) -> None:
        # at the same step in all runs, because MLflow's UI shows the pictures of one step
        retried(partial(self.client.log_image, self.run_id, image, key=key, step=0))

    def log_model(
        self,
        model: "nn.Module",
        example: NDArray[np.float32],
        classes: Sequence[str],
        write: Callable[[Path], None],
        registered_name: str | None = None,
    ) -> None:
        """Log a model as .pt2, which other programs load without this package.

        Args:
            model: on the CPU, in eval mode.
            example: [B, C, H, W] pixels in 0..1. With B = 1 the export would fix the batch size.
            classes: names in label order, stored with the model.
            write: puts the files into a folder from which this package rebuilds the model.
            registered_name: entry of the model registry that gets a new version; None: none.
        """
        import mlflow.pytorch

        batch = TensorSpec(np.dtype("float32"), (-1, *example.shape[1:]))
        logits = TensorSpec(np.dtype("float32"), (-1, -1))
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # from inside torch.export
            write(Path(folder))
            log_model = partial(
                mlflow.pytorch.log_model,
                model,
                name="model",
                registered_model_name=registered_name,
                input_example=example,
                signature=ModelSignature(Schema([batch]), Schema([logits])),
                serialization_format="pt2",
                metadata={"classes": list(classes)},
                extra_files=[str(path) for path in Path(folder).iterdir()],
                # otherwise MLflow starts a process that guesses them: 5 to 9 s
                pip_requirements=[f"torch=={provenance.package_versions()['torch']}"],
            )
            retried(log_model)


class MlflowTracker(MlflowRun):
    """Opens the MLflow run of a configuration, and writes it.

    Args:
        cfg: the whole configuration; `tracking` and `store` in it say where the run goes.
        run_name: the run's name in MLflow.
        tags: tags of the run that are known before it opens.
        params: parameters of the run: the settings of `cfg`, and what reads better.
    """

    def __init__(
        self,
        cfg: DictConfig,
        *,
        run_name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
    ) -> None:
        self.cfg, self.run_name, self.tags, self.params = cfg, run_name, tags, params

    @contextmanager
    def run(self, tags: Mapping[str, str]) -> Iterator[None]:
        """Open a run that records the code, the packages and the configuration; see `start_run`."""
        settings = self.cfg.tracking
        uri = store_uri(settings.uri, self.cfg.store)
        experiment_id = prepare(uri, self.cfg.store, settings.experiment)
        tags = {**provenance.code_tags(), **self.tags, **tags}
        with start_run(
            uri, experiment_id, name=self.run_name, tags=tags, params=self.params
        ) as run:
            self.client, self.run_id = run.client, run.run_id
            self.log_artifacts(self._write_inputs)
            yield

    def _write_inputs(self, folder: Path) -> None:
        settings = masked(OmegaConf.to_container(self.cfg, resolve=True))
        OmegaConf.save(settings, folder / "config.yaml")
        (folder / "code.diff").write_text(provenance.git_state()[1])


@contextmanager
def start_run(
    uri: str,
    experiment_id: str,
    *,
    name: str | None,
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> Iterator[MlflowRun]:
    """Open a run. It ends FINISHED, after an exception FAILED, after a signal KILLED."""
    mlflow.set_tracking_uri(uri)
    tags = {**processes.process_identity(), **tags}
    started = retried(
        partial(mlflow.start_run, experiment_id=experiment_id, run_name=name, tags=tags)
    )
    run = MlflowRun(MlflowClient(uri), started.info.run_id)
    try:
        run.log_params(params)
        yield run
        _end(run, "FINISHED")
    except Exception as error:
        text = mask_in(traceback.format_exc(), uri)
        with suppress(MlflowException):  # if the store stays away, raise the first error
            run.set_tags({"error": mask_in(f"{type(error).__name__}: {error}", uri)[:5000]})
            run.log_artifacts(lambda folder: _write(folder / "traceback.txt", text))
        with suppress(MlflowException):
            _end(run, "FAILED")
        raise
    except BaseException:
        with suppress(MlflowException):
            _end(run, "KILLED")
        raise


def _end(run: MlflowRun, status: str) -> None:
    """Close a run. `mlflow.end_run` alone forgets the run before it writes, so a retry does nothing."""
    try:
        retried(partial(run.client.set_terminated, run.run_id, status))
    finally:
        with suppress(MlflowException):
            mlflow.end_run(status)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@contextmanager
def sweep_run(
    uri: str, experiment_id: str, sweep: str, tags: Mapping[str, str]
) -> Iterator[MlflowRun]:
    """Open the summary run of a sweep. A sweep that resumes reopens its run."""
    client = MlflowClient(uri)
    query = f"tags.kind = 'sweep' AND {tag_is('sweep', sweep)}"
    tags = {**processes.process_identity(), "kind": "sweep", "sweep": sweep, **tags}
    existing = next(find_runs(client, [experiment_id], query), None) or client.create_run(
        experiment_id, tags=tags, run_name=f"sweep {sweep}"
    )
    run = MlflowRun(client, existing.info.run_id)
    run.set_tags(tags)
    retried(partial(client.update_run, run.run_id, "RUNNING"))
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        retried(partial(client.set_terminated, run.run_id, status))
