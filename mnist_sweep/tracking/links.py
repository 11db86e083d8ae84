"""Links to the pages of MLflow's UI."""

import json
import shlex
from collections.abc import Sequence
from urllib.parse import quote

from mlflow import MlflowClient

from mnist_sweep.common.secrets import mask_url
from mnist_sweep.tracking import queries
from mnist_sweep.tracking.config import UI_PORT
from mnist_sweep.tracking.run import store_uri

UI_HOST = "127.0.0.1"
EXPERIMENTS = "/#/experiments"


def runs_page(experiment_id: str, sweep: str | None = None) -> str:
    """Return the path of the page with all runs, or the trials of `sweep`, next to their charts."""
    page = f"{EXPERIMENTS}/{experiment_id}/runs?workflowType=machine_learning"
    page += "&compareRunsMode=CHART"
    if sweep is None:
        return page
    # a trial that was interrupted has another run that replaces the killed one
    query = f"tags.sweep = '{sweep}' AND tags.trial != '' AND attributes.status != 'KILLED'"
    return f"{page}&searchFilter={quote(query)}"


def comparison_page(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return the path of the page that compares the parameters and the metrics of runs."""
    runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}"


def ui_url(page: str, port: int = UI_PORT) -> str:
    """Return the URL of a page in the UI that the tool `ui` serves."""
    return f"http://{UI_HOST}:{port}{page}"


def ui_links(uri: str, port: int, n_best: int) -> dict[str, str]:
    """Return {title: URL} of the pages to look at first in the UI of a store.

    They are all runs, the trials of the last sweep, and its `n_best` best trials compared.
    """
    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    if not ids:
        return {"all runs": ui_url(EXPERIMENTS, port)}
    pages = {"all runs": runs_page(ids[0])}
    sweep = queries.last_sweep(client, ids)
    if sweep is not None:
        experiment_id, name = sweep.info.experiment_id, sweep.data.tags["sweep"]
        pages[f"sweep {name}"] = runs_page(experiment_id, name)
        best = queries.best_trials(client, sweep, n_best)
        if len(best) > 1:
            pages[f"best {len(best)} trials of {name}"] = comparison_page(experiment_id, best)
    return {title: ui_url(page, port) for title, page in pages.items()}


def comparison_link(uri: str, experiment_id: str, sweep: str, store: str) -> str:
    """Return the URL of a sweep's runs. Without a server, the command that starts one comes first."""
    page = runs_page(experiment_id, sweep)
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/") + page
    if uri == store_uri(None, store):
        command = ["python", "-m", "mnist_sweep", "ui", f"store={store}"]
    else:
        backend = ["--backend-store-uri", mask_url(uri)]
        command = ["mlflow", "ui", *backend, "--port", str(UI_PORT)]
    return f"{shlex.join(command)}\n  and in a browser: {ui_url(page)}"
