"""MLflow: one run recorded, the runs of dead processes closed, the runs of a sweep found again."""

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
from typing import TypeVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# MLflow's own defaults let a call to a server that went away hang for 248 s.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
import numpy as np
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import (
    DatasetInput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError
from torch import nn

from mnist_sweep.common import processes
from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.tracking import provenance
from mnist_sweep.training.reporting import Tracker

log = logging.getLogger(__name__)
for _chatty in ("alembic", "mlflow.store"):  # they tell of every migration of a new store
    logging.getLogger(_chatty).setLevel(logging.WARNING)

RETRY_FOR_S = 120  # a store locked by another process is waited for this long
PROBE_TIMEOUT_S = 5
PARAM_LIMIT = 6000  # characters of a param's value

T = TypeVar("T")


def store_uri(uri: str | None, store: str) -> str:
    """The tracking URI: `uri`, or SQLite under the folder `store`."""
    return uri or f"sqlite:///{Path(store).resolve()}/mlflow.db"


def prepare(uri: str, store: str, experiment: str) -> str:
    """Create what is missing and close the runs of dead processes; returns the experiment's id.

    Under a file lock, because two processes at a new SQLite file would spoil it for good.

    Raises:
        UserError: the server does not answer, the database does not open, or `store` cannot be written.
    """
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    folder = Path(store).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "mlflow.lock", timeout=RETRY_FOR_S):
            mlflow.set_tracking_uri(uri)
            client = MlflowClient(uri)
            if uri.startswith("sqlite:") and client.get_experiment_by_name(experiment) is None:
                location = (folder / "artifacts").as_uri()
                client.create_experiment(experiment, artifact_location=location)
            experiment_id: str = mlflow.set_experiment(experiment).experiment_id
            close_dead_runs(client, experiment_id)
    except OSError as error:
        raise UserError(f"cannot write to store={store} ({error.strerror or error})") from error
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"MLflow cannot open {without_password(uri)}: {reason}") from error
    return experiment_id


def _probe(uri: str) -> None:
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        raise UserError(
            f"no MLflow server answers at tracking.uri={without_password(uri)} "
            f"({type(error).__name__}); start it, or leave tracking.uri out to record under store, or "
            "use tracking=none"
        ) from error


def close_dead_runs(client: MlflowClient, experiment_id: str) -> None:
    """Mark KILLED what a SIGKILL or a power cut left RUNNING on this machine."""
    for run in runs(client, experiment_id, "attributes.status = 'RUNNING'"):
        if processes.is_dead(run.data.tags):
            client.set_terminated(run.info.run_id, "KILLED")
            log.info("run %s of a dead process: marked KILLED", run.info.run_name)


def runs(client: MlflowClient, experiment_id: str, query: str = "") -> Iterator[Run]:
    """All runs that match, page by page, the newest first."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def retried(call: Callable[[], T]) -> T:
    """Call again while the store is locked or its server away, for RETRY_FOR_S seconds."""
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        try:
            return call()
        except MlflowException as error:
            busy = error.error_code == "TEMPORARILY_UNAVAILABLE" or any(
                text in str(error) for text in ("is locked", "failed with exception")
            )
            if not busy or time.monotonic() > deadline:
                raise
            log.warning("the MLflow store is busy or away, trying again")
            time.sleep(1)


class MlflowTracker(Tracker):
    """Writes the active MLflow run; `start_run` makes one and surely closes it."""

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
        shown = {name: without_password(value)[:PARAM_LIMIT] for name, value in params.items()}
        entities = [Param(name, value) for name, value in shown.items()]
        for first in range(0, len(entities), 100):  # MLflow's limit a call
            batch = entities[first : first + 100]
            retried(partial(self.client.log_batch, self.run_id, params=batch))

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        """The data really used, with our digest: MLflow's own is that of a sample."""
        entity = DatasetEntity(
            name=name,
            digest=sha256[:36],  # MLflow's limit; the tag `data.sha256` has it whole
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(sizes)),
        )
        retried(partial(self.client.log_inputs, self.run_id, [DatasetInput(entity, [])]))

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            retried(partial(self.client.log_artifacts, self.run_id, folder))

    def log_model(
        self,
        model: nn.Module,
        example: NDArray[np.float32],
        classes: Sequence[str],
        registered_name: str | None = None,
    ) -> None:
        """As pt2, which loads without our package and runs no code from its file.

        Args:
            model: on the CPU, in eval mode.
            example: [B, C, H, W] pixels in 0..1; B at least 2, or the batch size is frozen.
            classes: their names in label order, kept with the model.
            registered_name: entry of MLflow's model registry that gets a new version.
        """
        import mlflow.pytorch

        batch = TensorSpec(np.dtype("float32"), (-1, *example.shape[1:]))
        logits = TensorSpec(np.dtype("float32"), (-1, -1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export's internals
            log_model = partial(
                mlflow.pytorch.log_model,
                model,
                name="model",
                registered_model_name=registered_name,
                input_example=example,
                signature=ModelSignature(Schema([batch]), Schema([logits])),
                serialization_format="pt2",
                metadata={"classes": list(classes)},
                # without it MLflow starts a process to guess them: 5 to 9 s
                pip_requirements=[f"{p}=={provenance.package_versions()[p]}" for p in ("torch",)],
            )
            retried(log_model)


@contextmanager
def start_run(
    uri: str,
    experiment_id: str,
    *,
    name: str | None,
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> Iterator[MlflowTracker]:
    """A run that ends FINISHED, FAILED by an exception, or KILLED by a signal."""
    mlflow.set_tracking_uri(uri)
    tags = {**processes.process_identity(), **tags}
    run = retried(partial(mlflow.start_run, experiment_id=experiment_id, run_name=name, tags=tags))
    tracker = MlflowTracker(MlflowClient(uri), run.info.run_id)
    try:
        tracker.log_params(params)
        yield tracker
        _end(tracker, "FINISHED")
    except Exception as error:
        text = traceback.format_exc()
        with suppress(MlflowException):  # where the store stays away, the first error is told
            tracker.set_tags({"error": f"{type(error).__name__}: {error}"[:5000]})
            tracker.log_artifacts(lambda folder: _write(folder / "traceback.txt", text))
        with suppress(MlflowException):
            _end(tracker, "FAILED")
        raise
    except BaseException:
        with suppress(MlflowException):
            _end(tracker, "KILLED")
        raise


def _end(tracker: MlflowTracker, status: str) -> None:
    """`mlflow.end_run` alone forgets the run before it writes, so that a second try does nothing."""
    try:
        retried(partial(tracker.client.set_terminated, tracker.run_id, status))
    finally:
        with suppress(MlflowException):
            mlflow.end_run(status)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


@contextmanager
def sweep_run(
    uri: str, experiment_id: str, sweep: str, tags: Mapping[str, str]
) -> Iterator[MlflowTracker]:
    """The summary run of a sweep: one for its name, reopened when the sweep goes on."""
    client = MlflowClient(uri)
    query = f"tags.kind = 'sweep' AND tags.sweep = '{sweep}'"
    found = next(runs(client, experiment_id, query), None)
    tags = {**processes.process_identity(), "kind": "sweep", "sweep": sweep, **tags}
    run = found or client.create_run(experiment_id, tags=tags, run_name=f"sweep {sweep}")
    tracker = MlflowTracker(client, run.info.run_id)
    tracker.set_tags(tags)
    retried(partial(client.update_run, tracker.run_id, "RUNNING"))
    status = "KILLED"
    try:
        yield tracker
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        retried(partial(client.set_terminated, tracker.run_id, status))
