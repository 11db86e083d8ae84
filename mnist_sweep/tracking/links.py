"""Links to the pages of MLflow's UI."""

import logging
import shlex
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mnist_sweep.common.secrets import mask_url
from mnist_sweep.tracking import queries, view
from mnist_sweep.tracking.config import UI_PORT
from mnist_sweep.tracking.run import store_uri

log = logging.getLogger(__name__)

UI_HOST = "127.0.0.1"
EXPERIMENTS = "/#/experiments"


def runs_page(experiment_id: str, sweeps: Sequence[str] = ()) -> str:
    """Return the path of the page with all runs next to their charts.

    With `sweeps` it is the page that compares their trials; see `view`.
    """
    page = f"{EXPERIMENTS}/{experiment_id}/runs?workflowType=machine_learning"
    page += "&compareRunsMode=CHART"
    return f"{page}&viewStateShareKey={view.key(sweeps)}" if sweeps else page


def ui_url(page: str, port: int = UI_PORT) -> str:
    """Return the URL of a page in the UI that the tool `ui` serves."""
    return f"http://{UI_HOST}:{port}{page}"


def ui_links(uri: str, port: int, sweeps: Sequence[str]) -> dict[str, str]:
    """Return {title: URL} of the pages to look at first in the UI of a store.

    They are all runs, and the comparison of the trials of `sweeps`, by default of the last sweep.

    Raises:
        UserError: there is no such sweep, or the sweeps are in several experiments.
    """
    client = MlflowClient(uri)
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    if not ids:
        return {"all runs": ui_url(EXPERIMENTS, port)}
    pages = {"all runs": runs_page(ids[0])}
    found = queries.sweeps(client, ids, sweeps)
    if found:
        experiment_id = found[0].info.experiment_id
        names = [sweep.data.tags["sweep"] for sweep in found]
        title = f"{'sweep' if len(names) == 1 else 'sweeps'} {', '.join(names)}"
        try:
            view.save(client, experiment_id, found)
        except MlflowException as error:  # a store that cannot be written can still be looked at
            log.warning("the page of %s was not renewed: %s", title, str(error).splitlines()[0])
        pages[title] = runs_page(experiment_id, names)
    return {title: ui_url(page, port) for title, page in pages.items()}


def comparison_link(uri: str, experiment_id: str, sweep: str, store: str) -> str:
    """Return the URL of a sweep's comparison. Without a server, the command that starts one comes first."""
    page = runs_page(experiment_id, [sweep])
    if uri.startswith(("http://", "https://")):
        return uri.rstrip("/") + page
    if uri == store_uri(None, store):
        command = ["python", "-m", "mnist_sweep", "ui", f"store={store}"]
    else:
        backend = ["--backend-store-uri", mask_url(uri)]
        command = ["mlflow", "ui", *backend, "--port", str(UI_PORT)]
    return f"{shlex.join(command)}\n  and in a browser: {ui_url(page)}"
