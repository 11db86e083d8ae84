"""Reads runs, their files and their models from MLflow."""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as Run
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.models import Model as Model
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from omegaconf import DictConfig
from requests import Response
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from mnist_sweep.common.configs import read_config
from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.secrets import mask_in, mask_url
from mnist_sweep.tracking.retry import retried

if TYPE_CHECKING:
    from torch import nn

History = dict[str, list[tuple[int, float]]]  # metric -> (epoch, value)

PROBE_TIMEOUT_S = min(5, MLFLOW_HTTP_REQUEST_TIMEOUT.get())  # type: ignore[no-untyped-call]
FINISHED = "attributes.status = 'FINISHED'"
TRAINED = f"{FINISHED} AND metrics.`test/loss` > -1"  # neither pruned nor the run of a tool
IS_TRIAL = "tags.trial != ''"
TRAIN_ONE = "python -m mnist_sweep trains one"


def connect(uri: str, key: str = "tracking.uri") -> MlflowClient:
    """Open a store to read from.

    Args:
        key: the setting that names the store, for errors.

    Raises:
        UserError: the SQLite file is missing (MLflow would create it), the server does not answer,
            or MLflow cannot open the store.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        raise UserError(f"{path} does not exist: no run was recorded; {TRAIN_ONE}")
    check_server(uri, key)
    with store_errors(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)  # the client connects at the first call
    return client


def check_server(uri: str, key: str = "tracking.uri") -> None:
    """Raise UserError if `uri` names a server that does not answer. MLflow would try for minutes."""
    if uri.startswith(("postgresql", "mysql", "mssql")):
        _check_database(uri, key)
    if not uri.startswith(("http://", "https://")):
        return
    try:
        answer = _probe(uri)
    except MlflowException as error:
        raise UserError(
            f"no MLflow server answers at {key}={uri} within {PROBE_TIMEOUT_S} s; start it, or remove "
            f"{key} to record under store"
        ) from error
    if answer.status_code in (401, 403):
        raise UserError(
            f"{key}={uri} refuses these credentials ({answer.status_code} {answer.reason}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if not answer.ok:
        raise UserError(
            f"{key}={uri} answers {answer.status_code} {answer.reason}: expected an MLflow server"
        )


def answers(uri: str) -> bool:
    """Whether the server at `uri` answers. Of another store only a call can tell: True."""
    if not uri.startswith(("http://", "https://")):
        return True
    try:
        _probe(uri)
    except MlflowException:
        return False
    return True


def _probe(uri: str) -> Response:
    """Ask a server how it is. Raises MlflowException if it does not answer in time, or with 429 or 5xx."""
    # with the user's credentials, because a proxy in front of the server may want them
    credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    limits = {"max_retries": 0, "timeout": PROBE_TIMEOUT_S}
    answer: Response = http_request(credentials, "/health", "GET", **limits)  # type: ignore[no-untyped-call]
    return answer


def _check_database(uri: str, key: str) -> None:
    try:
        with create_engine(uri).connect():
            pass
    except (SQLAlchemyError, ImportError) as error:
        reason = mask_in(str(error).partition("\n")[0], uri)
        raise UserError(f"{key}={mask_url(uri)} cannot be opened: {reason}") from error


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Raise UserError for the errors of a store that does not open."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"MLflow cannot open {mask_url(uri)}: {mask_in(reason, uri)}") from error


def find_runs(
    client: MlflowClient,
    experiment_ids: Sequence[str],
    query: str,
    *,
    order: str | None = None,
    page_size: int = 1000,
) -> Iterator[Run]:
    """Yield the runs that match `query`, which is in MLflow's syntax.

    Args:
        order: an expression such as "metrics.`val/loss` ASC"; None: the newest run first.
        page_size: number of runs to fetch at a time; choose a small one if only the first are used.
    """
    order_by, token = [order] if order else None, None
    while True:
        page = client.search_runs(
            list(experiment_ids), query, max_results=page_size, order_by=order_by, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def tag_is(name: str, value: str) -> str:
    """Return the query for runs whose tag has this value. Raises UserError if MLflow cannot express it."""
    quote = '"' if "'" in value else "'"
    if quote in value:
        raise UserError(f"{name}={value}: expected a name without both kinds of quotes")
    return f"tags.{name} = {quote}{value}{quote}"


def trial_runs(
    client: MlflowClient, experiment: str, sweep: str, *conditions: str
) -> Iterator[tuple[int, Run]]:
    """Yield the runs of a sweep's trials with the numbers of the trials, the newest first.

    Args:
        conditions: that every run must meet, in MLflow's query language.
    """
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return
    query = " AND ".join((tag_is("sweep", sweep), IS_TRIAL, *conditions))
    for run in find_runs(client, [known.experiment_id], query):
        yield int(run.data.tags["trial"]), run


def trained_runs(uri: str, experiment_id: str, sweep: str) -> list[Run]:
    """Return the runs of a sweep that finished and were not pruned, the oldest first."""
    query = f"{tag_is('sweep', sweep)} AND {TRAINED}"
    return list(find_runs(connect(uri), [experiment_id], query))[::-1]


def runs_by_id(uri: str, ids: Sequence[str]) -> list[Run]:
    """Return the runs with these ids. Raises UserError if one does not exist."""
    client = connect(uri)
    try:
        return [client.get_run(run_id) for run_id in ids]
    except MlflowException as error:
        raise UserError(f"runs={','.join(ids)}: {str(error).splitlines()[0]}") from error


def best_runs_of(uri: str, experiment: str, sweep: str, numbers: Sequence[int]) -> dict[int, Run]:
    """Return {trial number: its finished run} in the order of `numbers`.

    Trials without a finished run are left out.
    """
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return {}
    runs: dict[int, Run] = {}
    for number in numbers:
        query = f"{tag_is('sweep', sweep)} AND {tag_is('trial', str(number))} AND {FINISHED}"
        run = next(find_runs(client, [known.experiment_id], query, page_size=1), None)
        if run is not None:
            runs[number] = run
    return runs


def last_sweep(client: MlflowClient, experiment_ids: Sequence[str]) -> Run | None:
    """Return the summary run of the sweep that started last."""
    return next(find_runs(client, experiment_ids, "tags.kind = 'sweep'", page_size=1), None)


def sweeps(client: MlflowClient, experiment_ids: Sequence[str], names: Sequence[str]) -> list[Run]:
    """Return the summary runs of these sweeps; by default that of the last sweep, if there is one.

    Raises:
        UserError: there is no such sweep, or the sweeps are in several experiments.
    """
    last = last_sweep(client, experiment_ids)
    if not names:
        return [last] if last else []
    found = []
    for name in dict.fromkeys(names):
        query = f"tags.kind = 'sweep' AND {tag_is('sweep', name)}"
        run = next(find_runs(client, experiment_ids, query, page_size=1), None)
        if run is None:
            there = f"the last is {last.data.tags['sweep']}" if last else "there is none"
            raise UserError(f"sweep={name}: no such sweep; {there}")
        found.append(run)
    if len({run.info.experiment_id for run in found}) > 1:
        raise UserError(
            f"sweep={','.join(names)}: expected sweeps of one experiment (tracking.experiment)"
        )
    return found


def best_of_last_sweep(uri: str, models: Sequence[str]) -> dict[str, str]:
    """Return {model: run id of its best run in the last sweep}. Raises UserError if one has no run."""
    client = connect(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    last = last_sweep(client, experiments)
    if last is None:
        raise UserError(
            f"no sweep in {mask_url(uri)}; python -m mnist_sweep -m model={','.join(models)}"
        )
    sweep, run_ids = last.data.tags["sweep"], {}
    for model in models:
        query = f"{tag_is('sweep', sweep)} AND {tag_is('model', model)} AND {TRAINED}"
        runs = find_runs(
            client, experiments, query, order="metrics.`best/val/accuracy` DESC", page_size=100
        )
        best = next((run for run in runs if has_model(client, run)), None)
        if best is None:
            raise UserError(f"models={model}: the last sweep, {sweep}, has no trained model of it")
        run_ids[model] = best.info.run_id
    return run_ids


def newest_trained_run(uri: str) -> str | None:
    """Return the id of the newest finished run whose model is still stored."""
    client = connect(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = find_runs(client, experiments, TRAINED, page_size=100)
    return next((str(run.info.run_id) for run in runs if has_model(client, run)), None)


def has_model(client: MlflowClient, run: Run) -> bool:
    """Whether a run logged a model that is not deleted."""
    for output in run.outputs.model_outputs if run.outputs else ():
        try:
            client.get_logged_model(output.model_id)
        except MlflowException:  # deleted by sweep.top_k
            continue
        return True
    return False


def history(uri: str, run_id: str, metrics: Sequence[str]) -> History:
    """Return the values of these metrics of a run, epoch by epoch."""
    client = MlflowClient(uri)
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in metrics
    }


@contextmanager
def artifact(uri: str, run_id: str, name: str) -> Iterator[Path]:
    """Download a file of a run, and delete the copy when the block ends.

    Raises:
        UserError: the run has no such file.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = retried(
                partial(MlflowClient(uri).download_artifacts, run_id, name, dst_path=folder)
            )
        except (MlflowException, OSError) as error:
            raise UserError(f"run {run_id} has no {name} in MLflow") from error
        yield Path(path)


def config_of(uri: str, run_id: str) -> DictConfig:
    """Return the configuration that a run recorded. Raises UserError if it recorded none."""
    with artifact(uri, run_id, "config.yaml") as path:
        return read_config(path)


def data_digest(uri: str, run_id: str) -> str | None:
    """Return the sha256 of the dataset that a run used, if it recorded one."""
    digest: str | None = MlflowClient(uri).get_run(run_id).data.tags.get("data.sha256")
    return digest


def directory_of(uri: str, run_id: str) -> Path | None:
    """Return the directory that a run recorded as its own, on the machine where it ran."""
    try:
        tags = MlflowClient(uri).get_run(run_id).data.tags
    except MlflowException:  # the run is deleted
        return None
    return Path(tags["directory"]) if "directory" in tags else None


@contextmanager
def model_folder(uri: str, model_uri: str) -> Iterator[tuple[Path, Model]]:
    """Download a logged or registered model and its description, and delete the copy when the block ends.

    Raises:
        UserError: there is no such model.
    """
    connect(uri)
    mlflow.set_tracking_uri(uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
            description = Model.load(path)
        except Exception as error:  # MLflow raises many kinds for a damaged MLmodel
            reason = one_line(error, 200)
            raise UserError(f"no model {model_uri} in {mask_url(uri)}: {reason}") from error
        yield path, description


def load_pickle(folder: Path) -> "nn.Module":
    """Load a pickled model. This can run any code that the file contains."""
    import mlflow.pytorch

    model: nn.Module = mlflow.pytorch.load_model(str(folder), map_location="cpu")
    return model.eval()


def delete_models(client: MlflowClient, run: Run, artifacts: Path) -> None:
    """Delete the models that a run logged, and their files if they are in the folder `artifacts`.

    The store's record of a model may name any folder, and others may write to the store. Keeps the
    models of a run that is registered: the champion may be one of them.
    """
    if client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        return
    for output in run.outputs.model_outputs if run.outputs else ():
        try:
            location = client.get_logged_model(output.model_id).artifact_location
        except MlflowException:
            continue  # deleted before
        client.delete_logged_model(output.model_id)
        folder = Path(url2pathname(urlparse(location).path)).resolve()
        if location.startswith("file:") and artifacts.resolve() in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)


def delete_models_of_sweep(
    uri: str, experiment: str, sweep: str, kept: Collection[int], artifacts: Path
) -> None:
    """Delete the models of a sweep's trials, except those of the trial numbers in `kept`.

    Deletes files only in the folder `artifacts`.
    """
    client = MlflowClient(uri)
    for number, run in trial_runs(client, experiment, sweep):
        if number not in kept:
            delete_models(client, run, artifacts)
