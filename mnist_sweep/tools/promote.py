"""Challenger against champion on the same test images: `python -m mnist_sweep.promote [force=true]`."""

import logging
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep import app
from mnist_sweep.analysis import metrics
from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.data.dataset import Split
from mnist_sweep.tools.trained_model import Loaded, check_fits, data_of, load
from mnist_sweep.tracking import registry
from mnist_sweep.tracking import run as tracking

log = logging.getLogger("mnist_sweep.promote")  # not __main__, of which Hydra shows nothing

CALLS = 30  # whose median is the latency


def promote(cfg: DictConfig) -> None:
    """Move the alias `champion` to the challenger if that is better by more than noise, or by force."""
    uri, name = tracking.store_uri(cfg.tracking.uri, cfg.store), cfg.tracking.register
    challenger = registry.by_alias(uri, name, registry.CHALLENGER)
    if challenger is None:
        raise UserError(
            f"no challenger of {name} in {without_password(uri)}; a sweep registers its best model as one"
        )
    champion = registry.by_alias(uri, name, registry.CHAMPION)
    if champion is not None and champion.version == challenger.version:
        log.info("%s version %s is the champion already", name, champion.version)
        return
    tags = [v.tags for v in (champion, challenger) if v is not None]
    if len({t.get("data.sha256") for t in tags}) > 1 and not cfg.force:
        was, now = (f"{t.get('data')} ({t.get('data.sha256', '')[:8]})" for t in tags)
        raise UserError(
            f"the champion was trained on {was}, the challenger on {now}: "
            "force=true, or tracking.register=<another name> for the sweeps of each"
        )
    versions = {registry.CHAMPION: champion, registry.CHALLENGER: challenger}
    loaded = {
        alias: load(cfg, f"models:/{name}/{version.version}")
        for alias, version in versions.items()
        if version is not None
    }
    data = data_of(cfg, loaded[registry.CHALLENGER])
    right = {}
    for alias, model in loaded.items():
        check_fits(model, data)
        predicted = model.probabilities(data.test.images.numpy()).argmax(1)
        right[alias] = predicted == data.test.labels.numpy()
    log.info(_table(loaded, right, data.test, data.name))
    if champion is None:
        wins, why = True, "there was no champion yet"
    else:
        old, new = right[registry.CHAMPION], right[registry.CHALLENGER]
        p = metrics.mcnemar(old, new)
        wins, why = (
            bool(new.mean() > old.mean() and p < metrics.SIGNIFICANCE_LEVEL),
            f"McNemar's exact test: p = {p:.2g}",
        )
    if wins or cfg.force:
        registry.promote(uri, challenger)
        log.info("%s version %s is now the champion (%s)", name, challenger.version, why)
    else:
        log.info("the champion stays (%s); force=true moves the alias all the same", why)


def _table(
    loaded: dict[str, Loaded], right: dict[str, NDArray[np.bool_]], test: Split, data: str
) -> str:
    columns, rows = ("", "model", "test %", "right alone", "ms an image", "MB"), []
    for alias, model in loaded.items():
        others = [found for other, found in right.items() if other != alias]
        alone = f"{int((right[alias] & ~others[0]).sum()):,}" if others else ""
        latency = f"{median_ms(model.probabilities, test.images[:1].numpy()):.2f}"
        percent, megabytes = f"{100 * right[alias].mean():.2f}", f"{model.n_bytes / 1e6:.2f}"
        rows.append((alias, model.name, percent, alone, latency, megabytes))
    return console.table(columns, rows, f"{len(test):,} test images of {data}")


def median_ms(ask: Callable[[NDArray[Any]], Any], images: NDArray[Any]) -> float:
    """Milliseconds of one call, after one that warms up."""
    seconds = timeit.repeat(lambda: ask(images), number=1, repeat=CALLS + 1)
    return 1000 * statistics.median(seconds[1:])


def main() -> None:
    app.tool("promote", promote)


if __name__ == "__main__":
    main()
