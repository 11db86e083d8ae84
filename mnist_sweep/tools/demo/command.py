"""Draw, and see what the models say: `python -m mnist_sweep.demo [model=...] [models=simple,vgg]`."""

import logging
from contextlib import suppress

import uvicorn
from omegaconf import DictConfig

from mnist_sweep import app
from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.demo.server import make_app
from mnist_sweep.tools.trained_model import Loaded, check_fits, data_of, load
from mnist_sweep.tools.ui import free_port
from mnist_sweep.tracking import queries as recorded
from mnist_sweep.tracking import run as tracking

log = logging.getLogger("mnist_sweep.demo")  # not __main__, of which Hydra shows nothing


def demo(cfg: DictConfig) -> None:
    models = chosen(cfg)
    if len({(model.shape, model.classes) for _, model in models}) > 1:
        raise UserError("the models take different images or know different classes")
    data = data_of(cfg, models[0][1])
    check_fits(models[0][1], data)
    served = make_app(models, data, cfg.host)
    port = free_port(cfg.port, cfg.host)
    log.info("draw on http://%s:%d  (Ctrl-C ends it)", cfg.host, port)
    with suppress(KeyboardInterrupt):  # the way to end it
        uvicorn.run(served, host=cfg.host, port=port, log_level="warning", lifespan="off")


def chosen(cfg: DictConfig) -> list[tuple[str, Loaded]]:
    """The model that is asked for, or the best run of each of `models` in the last sweep."""
    if not cfg.models:
        model = load(cfg)
        run_id = model.run_id
        name = f"run {run_id[:8]}" if model.name == run_id else model.name
        return [(name, model)]
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store)
    runs = recorded.best_of_last_sweep(uri, list(cfg.models))
    return [(name, load(cfg, run_id)) for name, run_id in runs.items()]


def main() -> None:
    app.name_the_model()
    app.tool("demo", demo)


if __name__ == "__main__":
    main()
