"""Loads the models and serves the page until Ctrl-C."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import suppress

from omegaconf import DictConfig

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.demo.server import make_app, make_server
from mnist_sweep.tools.trained_model import TrainedModel, load_data_for, load_model
from mnist_sweep.tools.ui import find_free_port
from mnist_sweep.tracking import queries
from mnist_sweep.tracking.run import store_uri

log = logging.getLogger(__name__)


def run(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Serve the page on `cfg.host` and `cfg.port`."""
    warnings.filterwarnings("ignore", module="PIL")  # the page shows what is wrong with a picture
    models = load_models(cfg)
    first = next(iter(models.values()))
    if any((m.shape, m.classes) != (first.shape, first.classes) for m in models.values()):
        raise UserError("the models take images of different shapes or have different classes")
    app = make_app(models, load_data_for(first, cfg, overrides), cfg.host)
    port = find_free_port(cfg.port, cfg.host)
    host = f"[{cfg.host}]" if ":" in cfg.host else cfg.host  # as a URL writes IPv6
    log.info("draw on http://%s:%d  (Ctrl-C stops it)", host, port)
    with suppress(KeyboardInterrupt):
        make_server(app, cfg.host, port).run()


def load_models(cfg: DictConfig) -> dict[str, TrainedModel]:
    """Load the best run of each of `cfg.models` in the last sweep, by default the one model of `cfg`.

    Returns:
        {name to show: model}
    """
    if not cfg.models:
        model = load_model(cfg)
        is_run = model.run_id is not None and model.name == model.run_id
        return {f"run {model.name[:8]}" if is_run else model.name: model}
    uri = store_uri(cfg.tracking.uri, cfg.store)
    runs = queries.best_of_last_sweep(uri, list(cfg.models))
    return {name: load_model(cfg, run_id) for name, run_id in runs.items()}
