"""What MLflow has on record: runs found again, their files and models, the pages that show them."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlparse
from urllib.request import url2pathname

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.tracking.run import retried, runs, store_uri

History = dict[str, list[tuple[int, float]]]  # metric -> (epoch, value)


def finished_runs(
    uri: str, experiment_id: str, *, sweep: str | None, ids: Sequence[str]
) -> list[Run]:
    """Trained models of a sweep, the oldest first, or those of `ids`, of which all must exist."""
    client = MlflowClient(uri)
    if sweep is not None:
        query = f"tags.sweep = '{sweep}' AND attributes.status = 'FINISHED'"
        found = [
            run for run in runs(client, experiment_id, query) if "test/loss" in run.data.metrics
        ]
        return found[::-1]
    try:
        return [client.get_run(run_id) for run_id in ids]
    except MlflowException as error:
        raise UserError(f"runs={list(ids)}: {str(error).splitlines()[0]}") from error


def trial_runs(client: MlflowClient, sweep_run_id: str, sweep: str) -> list[Run]:
    experiment_id = client.get_run(sweep_run_id).info.experiment_id
    found = runs(client, experiment_id, f"tags.sweep = '{sweep}'")
    return [run for run in found if "trial" in run.data.tags]


def best_runs_of(uri: str, experiment: str, sweep: str, numbers: Sequence[int]) -> dict[int, Run]:
    """The finished run of each of these trials, as far as they are on record, in their order."""
    client = MlflowClient(uri)
    known = client.get_experiment_by_name(experiment)
    found: dict[int, Run] = {}
    if known is None:
        return found
    for number in numbers:
        query = (
            f"tags.sweep = '{sweep}' AND tags.trial = '{number}' AND attributes.status = 'FINISHED'"
        )
        run = next(runs(client, known.experiment_id, query), None)
        if run is not None:
            found[number] = run
    return found


def history(uri: str, run_id: str, metrics: Sequence[str]) -> History:
    """These metrics of a run, epoch by epoch."""
    client = MlflowClient(uri)
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in metrics
    }


def best_trials(client: MlflowClient, sweep: Run, n: int) -> list[str]:
    """Ids of the n best finished trials of a sweep's run, by the objective that it recorded."""
    metric = next((name for name in sweep.data.metrics if name.startswith("best/")), None)
    if metric is None:
        return []
    direction = "ASC" if metric.endswith("loss") else "DESC"
    query = (
        f"tags.sweep = '{sweep.data.tags['sweep']}' AND tags.trial != '' "
        f"AND attributes.status = 'FINISHED' AND metrics.`{metric}` > -1"
    )
    order = [f"metrics.`{metric}` {direction}"]
    found = client.search_runs([sweep.info.experiment_id], query, max_results=n, order_by=order)
    return [run.info.run_id for run in found]


@contextmanager
def artifact(uri: str, run_id: str, name: str) -> Iterator[Path]:
    """A file that a run left, on this machine while the block lasts. Raises UserError without it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = retried(
                partial(MlflowClient(uri).download_artifacts, run_id, name, dst_path=folder)
            )
        except (MlflowException, OSError) as error:
            raise UserError(f"run {run_id} has no {name} in MLflow: it cannot take part") from error
        yield Path(path)


def config_of(uri: str, run_id: str) -> DictConfig:
    """The configuration that a run recorded. Raises UserError without it."""
    with artifact(uri, run_id, "config.yaml") as path:
        found = OmegaConf.load(path)
    assert isinstance(found, DictConfig)
    return found


def data_digest(uri: str, run_id: str) -> str | None:
    """Of the data that a run was trained on."""
    digest: str | None = MlflowClient(uri).get_run(run_id).data.tags.get("data.sha256")
    return digest


@contextmanager
def model_folder(uri: str, model_uri: str) -> Iterator[tuple[Path, Model]]:
    """A logged or registered model on this machine while the block lasts, and what is known of it.

    Raises UserError where there is none.
    """
    mlflow.set_tracking_uri(uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=folder))
            about = Model.load(path)
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"no model {model_uri} in {without_password(uri)}: {reason}") from error
        yield path, about


def best_of_last_sweep(uri: str, models: Sequence[str]) -> dict[str, str]:
    """The id of the best run of each model in the last sweep. Raises UserError where one is missing."""
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    last = _last_sweep(client, experiments)
    if last is None:
        raise UserError(
            f"no sweep in {without_password(uri)}; python -m mnist_sweep -m model={','.join(models)}"
        )
    sweep, found = last.data.tags["sweep"], {}
    for model in models:
        query = (
            f"tags.sweep = '{sweep}' AND tags.model = '{model}' AND attributes.status = 'FINISHED' "
            "AND metrics.`test/loss` > -1"  # not pruned
        )
        order = ["metrics.`best/val/accuracy` DESC"]
        ranked = client.search_runs(experiments, query, order_by=order, max_results=100)
        best = next((run for run in ranked if has_model(client, run)), None)
        if best is None:
            raise UserError(f"models={model}: the last sweep, {sweep}, has no trained model of it")
        found[model] = best.info.run_id
    return found


def _last_sweep(client: MlflowClient, experiments: list[str]) -> Run | None:
    """The summary run of the sweep that began last."""
    found = client.search_runs(experiments, "tags.kind = 'sweep'", max_results=1)
    return found[0] if found else None


def newest_run(uri: str) -> str | None:
    """Id of the newest finished run that logged a model."""
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = (
        "attributes.status = 'FINISHED' AND metrics.`test/loss` > -1"  # not pruned, not a tool's
    )
    for run in client.search_runs(experiments, query, max_results=1000):
        if has_model(client, run):
            return str(run.info.run_id)
    return None


def has_model(client: MlflowClient, run: Run) -> bool:
    """Whether a run logged a model that is still there."""
    for output in run.outputs.model_outputs if run.outputs else ():
        try:
            client.get_logged_model(output.model_id)
        except MlflowException:  # deleted by sweep.top_k
            continue
        return True
    return False


def load_pickle(folder: Path) -> nn.Module:
    """Runs whatever code the file holds."""
    import mlflow.pytorch

    model: nn.Module = mlflow.pytorch.load_model(str(folder), map_location="cpu")
    return model.eval()


def delete_models(client: MlflowClient, run: Run) -> None:
    """The models that a run logged, with their files where those lie on this machine.

    Not those that are registered: the champion's files are in use.
    """
    if client.search_model_versions(f"run_id = '{run.info.run_id}'"):
        return
    for output in run.outputs.model_outputs if run.outputs else ():
        try:
            location = client.get_logged_model(output.model_id).artifact_location
        except MlflowException:
            continue  # deleted by an earlier call
        client.delete_logged_model(output.model_id)
        if location.startswith("file:"):
            shutil.rmtree(url2pathname(urlparse(location).path), ignore_errors=True)


def first_pages(uri: str, n_best: int) -> dict[str, str]:
    """What to look at first: all runs, those of the last sweep, its best side by side."""
    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    if not ids:
        return {"all runs": "/#/experiments"}
    found = {"all runs": runs_page(ids[0])}
    last = _last_sweep(client, ids)
    if last is not None:
        experiment_id, name = last.info.experiment_id, last.data.tags["sweep"]
        found[f"sweep {name}"] = runs_page(experiment_id, name)
        best = best_trials(client, last, n_best)
        if len(best) > 1:
            found[f"its best {len(best)}"] = comparison_page(experiment_id, best)
    return found


def runs_page(experiment_id: str, sweep: str | None = None) -> str:
    """The page of MLflow's UI with all runs, or the trials of a sweep, their charts beside them."""
    page = (
        f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    if sweep is None:
        return page
    # attempts that were cut short have another trial in their place
    query = f"tags.sweep = '{sweep}' AND tags.trial != '' AND attributes.status != 'KILLED'"
    return f"{page}&searchFilter={quote(query)}"


def comparison_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs: parallel coordinates, scatter, their parameters side by side."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}"


def comparison_link(uri: str, experiment_id: str, sweep: str, store: str) -> str:
    """How to open the runs of a sweep in MLflow's UI."""
    page = runs_page(experiment_id, sweep)
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/") + page
    own = uri == store_uri(None, store)
    server = (
        shlex.join(["python", "-m", "mnist_sweep.ui", "--store", store])
        if own
        else shlex.join(["mlflow", "ui", "--backend-store-uri", without_password(uri)])
    )
    return f"{server}\n  and in a browser: http://127.0.0.1:5000{page}"
