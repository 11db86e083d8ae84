"""The store of the runs, and one run in it: opened, written, and closed with the right status."""

import io
import json
import logging
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
import numpy as np
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, LoggedModelOutput, Metric, Param, RunTag
from mlflow.models import Model, ModelSignature
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common import processes, sqlite
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.files import make_database, make_folder
from mnist_sweep.common.secrets import mask_in, mask_url, masked
from mnist_sweep.tracking import provenance
from mnist_sweep.tracking.queries import connect, find_runs, store_errors, tag_is, trial_runs
from mnist_sweep.tracking.retry import RETRY_FOR_S, is_outage, retried
from mnist_sweep.tracking.tracker import Tracker

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PARAM_LIMIT = 6000  # characters of a parameter's value
UNSENT = "unsent"  # folder for records on disk, in the store and in a run's output directory
RECORD = "record"  # tag of a run: the key of its record
MODEL = "model"  # name of a run's model
COMPRESSED = "+compressed"  # in the name of the last file of a picture

T = TypeVar("T")


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


def prepare(uri: str, store: str, experiment: str, kept: Collection[str] = ()) -> str:
    """Create the store and the experiment if needed, and close the runs of dead processes.

    A file lock protects the creation: two processes that create one SQLite file corrupt it. MLflow
    waits for a server that is away: `check_store` refuses it at once.

    Args:
        kept: see `close_dead_runs`.

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
            close_dead_runs(client, experiment_id, kept)
    except OSError as error:
        raise UserError(f"cannot write to store={store} ({error.strerror or error})") from error
    return experiment_id


def check_store(uri: str, key: str = "tracking.uri") -> None:
    """Raise UserError if no store can be opened or created at `uri`, the value of the setting `key`."""
    if uri.startswith("sqlite:///"):
        sqlite.check_file(Path(uri.removeprefix("sqlite:///")), f"{key}={uri}")
    else:
        connect(uri, key)


def check_at_start(uri: str, on_outage: str | None) -> None:
    """Check the store of a command that begins; see `check_store`.

    A wrong URI cannot be told from a server that is away. Therefore an outage is an error, unless
    `tracking.on_outage` is buffer, or wait, which waits here.

    Raises:
        UserError: the store cannot be opened or created, or is away.
    """
    is_waiting = False
    while True:
        try:
            return check_store(uri)
        except UserError as error:
            if on_outage not in ("buffer", "wait") or not is_outage(error):
                raise
            if on_outage == "buffer":
                return None  # the run says so
            if not is_waiting:
                log.warning("WARNING: waiting for MLflow at %s", mask_url(uri))
            is_waiting = True
            time.sleep(1)


def close_lost_runs(uri: str, experiment: str, sweep: str, finished: Collection[int]) -> None:
    """Mark runs of a sweep KILLED that are RUNNING although their trials have ended.

    They are of a host that was lost, or of one that cannot reach the store.

    Args:
        finished: numbers of the trials that have ended.
    """
    client = MlflowClient(uri)
    for number, run in trial_runs(client, experiment, sweep, "attributes.status = 'RUNNING'"):
        if number in finished:
            client.set_terminated(run.info.run_id, "KILLED")
            log.info("marked run %s KILLED: its host is lost", run.info.run_name)


def close_dead_runs(client: MlflowClient, experiment_id: str, kept: Collection[str] = ()) -> None:
    """Mark runs KILLED that a SIGKILL or a power cut left RUNNING on this machine.

    Args:
        kept: keys of records that will be sent, and say themselves how their runs ended.
    """
    for run in find_runs(client, [experiment_id], "attributes.status = 'RUNNING'"):
        if processes.is_dead(run.data.tags) and run.data.tags.get(RECORD) not in kept:
            client.set_terminated(run.info.run_id, "KILLED")
            log.info("marked run %s KILLED: its process is dead", run.info.run_name)


class MlflowRun(Tracker):
    """Writes one run. A call that failed halfway can be repeated: nothing is recorded twice.

    Args:
        patience_s: how long a call waits for a store that is locked or away.
    """

    def __init__(self, client: MlflowClient, run_id: str, patience_s: float = RETRY_FOR_S) -> None:
        self.client, self.run_id, self.patience_s = client, run_id, patience_s

    def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return retried(partial(function, *args, **kwargs), self.patience_s)

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, time_ms: int | None = None
    ) -> None:
        time_ms = now_ms() if time_ms is None else time_ms
        entities = [Metric(name, value, time_ms, step) for name, value in metrics.items()]
        self._call(self.client.log_batch, self.run_id, metrics=entities)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        entities = [RunTag(name, value) for name, value in tags.items()]
        self._call(self.client.log_batch, self.run_id, tags=entities)

    def log_params(self, params: Mapping[str, str]) -> None:
        entities = [Param(k, v) for k, v in cut_params(params).items()]
        for first in range(0, len(entities), 100):  # MLflow's limit for one call
            batch = entities[first : first + 100]
            self._call(self.client.log_batch, self.run_id, params=batch)

    def log_dataset(self, name: str, sha256: str, source: str, sizes: Mapping[str, int]) -> None:
        # with our digest, because MLflow computes its own from a sample
        entity = DatasetEntity(
            name=name,
            digest=sha256[:36],  # MLflow's limit; the tag `data.sha256` has all of it
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(sizes)),
        )
        self._call(self.client.log_inputs, self.run_id, [DatasetInput(entity, [])])

    def log_artifacts(self, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            self.log_folder(Path(folder))

    def log_folder(self, folder: Path) -> None:
        """Keep the files of a folder."""
        self._call(self.client.log_artifacts, self.run_id, str(folder))

    def log_image(self, key: str, image: NDArray[np.uint8]) -> None:
        def log_once() -> None:
            names = [file.path for file in self.client.list_artifacts(self.run_id, "images")]
            if not any(name.startswith(f"images/{key}+") and COMPRESSED in name for name in names):
                # at the same step in all runs, because MLflow's UI shows the pictures of one step
                self.client.log_image(self.run_id, image, key=key, step=0)

        self._call(log_once)

    def log_model(
        self,
        model: "nn.Module",
        example: NDArray[np.float32],
        classes: Sequence[str],
        write: Callable[[Path], None],
        registered_name: str | None = None,
    ) -> None:
        """Log a model; see `save_model` and `log_saved_model`."""
        with tempfile.TemporaryDirectory() as folder:
            path = save_model(Path(folder), model, example, classes, write)
            self.log_saved_model(path, registered_name)

    def log_saved_model(self, folder: Path, registered_name: str | None = None) -> None:
        """Log the model that `save_model` wrote.

        Args:
            registered_name: entry of the model registry that gets a new version; None: none.
        """
        client, run = self.client, self._call(self.client.get_run, self.run_id)
        query = f"source_run_id = '{self.run_id}' AND name = '{MODEL}'"
        found = self._call(client.search_logged_models, [run.info.experiment_id], query)
        logged = (
            found[0]
            if found  # an earlier call failed halfway
            else self._call(
                client.create_logged_model,
                run.info.experiment_id,
                name=MODEL,
                source_run_id=self.run_id,
                tags=resolve_tags(),
                params=run.data.params,
            )
        )
        if not run.outputs or not run.outputs.model_outputs:
            self._call(client.log_outputs, self.run_id, [LoggedModelOutput(logged.model_id, 0)])
        description = Model.load(folder)
        description.run_id, description.artifact_path = self.run_id, logged.artifact_location
        description.model_id = description.model_uuid = logged.model_id
        description.save(str(folder / "MLmodel"))
        self._call(client.log_model_artifacts, logged.model_id, str(folder))
        self._call(client.finalize_logged_model, logged.model_id, "READY")
        if registered_name is not None:
            uri = f"models:/{logged.model_id}"
            self._call(mlflow.register_model, uri, registered_name, await_registration_for=0)

    def status(self) -> str:
        """The run's status in the store: RUNNING, FINISHED, FAILED or KILLED."""
        status: str = self._call(self.client.get_run, self.run_id).info.status
        return status

    def reopen(self) -> None:
        """Mark the run RUNNING again."""
        self._call(self.client.update_run, self.run_id, "RUNNING")

    def end(self, status: str, time_ms: int | None = None) -> None:
        """Close the run."""
        self._call(self.client.set_terminated, self.run_id, status, time_ms)


def now_ms() -> int:
    return int(time.time() * 1000)


def cut_params(params: Mapping[str, str]) -> dict[str, str]:
    """Return parameters as MLflow takes them: without secrets, and not too long."""
    return {name: mask_url(value)[:PARAM_LIMIT] for name, value in params.items()}


def save_model(
    folder: Path,
    model: "nn.Module",
    example: NDArray[np.float32],
    classes: Sequence[str],
    write: Callable[[Path], None],
) -> Path:
    """Save a model in MLflow's format, as .pt2, which other programs load without this package.

    Args:
        folder: empty; the model goes into a folder in it.
        model: on the CPU, in eval mode.
        example: [B, C, H, W] pixels in 0..1. With B = 1 the export would fix the batch size.
        classes: names in label order, stored with the model.
        write: puts the files into a folder from which this package rebuilds the model.

    Returns:
        The folder of the model.
    """
    import mlflow.pytorch

    batch = TensorSpec(np.dtype("float32"), (-1, *example.shape[1:]))
    logits = TensorSpec(np.dtype("float32"), (-1, -1))
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as files:
        warnings.simplefilter("ignore")  # from inside torch.export
        write(Path(files))
        mlflow.pytorch.save_model(
            model,
            str(folder / MODEL),
            input_example=example,
            signature=ModelSignature(Schema([batch]), Schema([logits])),
            serialization_format="pt2",
            metadata={"classes": list(classes)},
            extra_files=[str(path) for path in Path(files).iterdir()],
            # otherwise MLflow starts a process that guesses them: 5 to 9 s
            pip_requirements=[f"torch=={provenance.package_versions()['torch']}"],
        )
    return folder / MODEL


def write_inputs(folder: Path, cfg: DictConfig) -> None:
    """Write the configuration of a run, and the uncommitted changes of the code."""
    settings = masked(OmegaConf.to_container(cfg, resolve=True))
    OmegaConf.save(settings, folder / "config.yaml")
    (folder / "code.diff").write_text(provenance.git_state()[1])


def open_run(
    uri: str,
    experiment_id: str,
    *,
    name: str | None,
    tags: Mapping[str, str],
    identity: Mapping[str, str] | None = None,
    start_ms: int | None = None,
    patience_s: float = RETRY_FOR_S,
) -> MlflowRun:
    """Create a run.

    Args:
        identity: tags that no other run has; a run that has them is opened again.
    """
    client, run = MlflowClient(uri), None
    if identity:
        query = " AND ".join(tag_is(key, value) for key, value in identity.items())
        run = next(find_runs(client, [experiment_id], query, page_size=1), None)
    run = run or client.create_run(
        experiment_id, start_time=start_ms, tags=dict(tags), run_name=name
    )
    return MlflowRun(client, run.info.run_id, patience_s)


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
    client = MlflowClient(uri)
    tags = resolve_tags({**processes.process_identity(), **tags})
    created = retried(partial(client.create_run, experiment_id, tags=dict(tags), run_name=name))
    run = MlflowRun(client, created.info.run_id)
    with closing(run, uri):
        run.log_params(params)
        yield run


@contextmanager
def closing(run: "RunWriter", uri: str) -> Iterator[None]:
    """End a run FINISHED, after an exception FAILED with its traceback, after a signal KILLED."""
    try:
        yield
        run.end("FINISHED")
    except Exception as error:
        text = mask_in(traceback.format_exc(), uri)
        with suppress(Exception):  # if the store refuses this too, raise the first error
            run.set_tags({"error": mask_in(f"{type(error).__name__}: {error}", uri)[:5000]})
            run.log_artifacts(lambda folder: _write(folder / "traceback.txt", text))
        with suppress(Exception):
            run.end("FAILED")
        raise
    except BaseException:
        with suppress(Exception):
            run.end("KILLED")
        raise


def activate(run: MlflowRun) -> None:
    """Make a run MLflow's active run, in which `mlflow.log_*` and `mlflow.autolog` record."""
    mlflow.start_run(run_id=run.run_id)


def deactivate() -> None:
    """Let no run be active. `closing` sets the status of the run that was."""
    # it prints the run's address, as `closing` does
    with suppress(Exception), redirect_stdout(io.StringIO()):  # the store may be away
        mlflow.end_run("RUNNING")


class RunWriter(Protocol):
    """What `closing` needs of a run."""

    def set_tags(self, tags: Mapping[str, str]) -> None: ...
    def log_artifacts(self, write: Callable[[Path], None]) -> None: ...
    def end(self, status: str) -> None: ...


def _write(path: Path, text: str) -> None:
    path.write_text(text)
