"""Compares the challenger with the champion on the same test images, and promotes it if it is better."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.analysis import metrics
from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.data.dataset import Dataset
from mnist_sweep.tools.timing import median_ms
from mnist_sweep.tools.trained_model import (
    TrainedModel,
    check_data_fits,
    load_data_for,
    load_model,
)
from mnist_sweep.tracking import registry
from mnist_sweep.tracking.registry import CHALLENGER, CHAMPION
from mnist_sweep.tracking.run import store_uri

log = logging.getLogger(__name__)


def run(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Give the challenger the alias `champion` if it is significantly better, or by `cfg.force`."""
    uri, name = store_uri(cfg.tracking.uri, cfg.store), cfg.tracking.register
    if not name:
        raise UserError("tracking.register: expected the name of a registered model")
    challenger = registry.by_alias(uri, name, CHALLENGER)
    if challenger is None:
        raise UserError(
            f"{name} has no challenger in {mask_url(uri)}; a sweep registers its best model "
            "as the challenger"
        )
    champion = registry.by_alias(uri, name, CHAMPION)
    if champion is not None and champion.version == challenger.version:
        log.info("%s version %s is already the champion", name, champion.version)
        return
    if champion is not None and not cfg.force:
        _check_same_data(champion.tags, challenger.tags)
    loaded = {
        alias: load_model(cfg, f"models:/{name}/{version.version}")
        for alias, version in ((CHAMPION, champion), (CHALLENGER, challenger))
        if version is not None
    }
    data = load_data_for(loaded[CHALLENGER], cfg, overrides)
    correct = {}
    for alias, model in loaded.items():
        check_data_fits(model, data)
        predicted = model.probabilities(data.test.images.numpy()).argmax(1)
        correct[alias] = predicted == data.test.labels.numpy()
    log.info(_table(loaded, correct, data))
    is_better, reason = compare(correct.get(CHAMPION), correct[CHALLENGER])
    if is_better or cfg.force:
        registry.promote(uri, challenger)
        log.info("%s version %s is now the champion (%s)", name, challenger.version, reason)
    else:
        log.info("the champion stays (%s); force=true promotes the challenger anyway", reason)


def compare(champion: NDArray[np.bool_] | None, challenger: NDArray[np.bool_]) -> tuple[bool, str]:
    """Say whether the challenger is significantly better, and why.

    Args:
        champion: whether the champion is correct on each test image, [N]; None without a champion.
        challenger: the same of the challenger.
    """
    if champion is None:
        return True, "there was no champion yet"
    p = metrics.mcnemar(champion, challenger)
    is_better = challenger.mean() > champion.mean() and p < metrics.SIGNIFICANCE_LEVEL
    return bool(is_better), f"McNemar's exact test: p = {p:.2g}"


def _check_same_data(champion: Mapping[str, str], challenger: Mapping[str, str]) -> None:
    """Raise UserError if the tags of two versions say that they were trained on different data."""
    if champion.get("data.sha256") != challenger.get("data.sha256"):
        before, now = (
            f"{tags.get('data')} ({tags.get('data.sha256', '')[:8]})"
            for tags in (champion, challenger)
        )
        raise UserError(
            f"the champion was trained on {before}, the challenger on {now}: set force=true, or "
            "tracking.register=<another name> for the sweeps of each dataset"
        )


def _table(
    loaded: Mapping[str, TrainedModel], correct: Mapping[str, NDArray[np.bool_]], data: Dataset
) -> str:
    columns, rows = ("", "model", "test %", "right alone", "ms an image", "MB"), []
    images = data.test.images
    for alias, model in loaded.items():
        others = [right for other, right in correct.items() if other != alias]
        alone = f"{int((correct[alias] & ~others[0]).sum()):,}" if others else ""
        latency = f"{median_ms(model.probabilities, images[:1].numpy()):.2f}"
        percent, megabytes = f"{100 * correct[alias].mean():.2f}", f"{model.n_bytes / 1e6:.2f}"
        rows.append((alias, model.name, percent, alone, latency, megabytes))
    return console.table(columns, rows, f"{len(images):,} test images of {data.name}")
