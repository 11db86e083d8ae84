"""Compares the challenger with the champion on the same images, and promotes it if it is better."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.analysis import metrics
from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.data.dataset import Dataset, Split
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

MIN_SHARED = 100  # images; with fewer, hardly any difference is significant


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
    versions = {CHAMPION: champion, CHALLENGER: challenger}
    loaded = {
        alias: load_model(cfg, f"models:/{name}/{version.version}")
        for alias, version in versions.items()
        if version is not None
    }
    data = load_data_for(loaded[CHALLENGER], cfg, overrides)
    for model in loaded.values():
        check_data_fits(model, data)
    images = {"test": data.test}
    same_data = champion is not None and _data_of(champion.tags) == _data_of(challenger.tags)
    if same_data and not _chooses_images(overrides):
        validation = _shared_validation(data, loaded, cfg, overrides)
        if len(validation) >= MIN_SHARED:
            images = {"validation": validation, **images}
    correct = {
        title: {alias: _is_correct(model, split) for alias, model in loaded.items()}
        for title, split in images.items()
    }
    log.info(_table(loaded, correct, data))
    title, decisive = next(iter(correct.items()))
    is_better, reason = compare(decisive.get(CHAMPION), decisive[CHALLENGER])
    if CHAMPION in loaded:
        reason += f" on {len(images[title]):,} {title} images"
    if CHAMPION in loaded and title == "test":
        log.warning(
            "WARNING: the test images decide, because the models have fewer than %d validation "
            "images in common. They have decided %d times before. After many decisions the test "
            "accuracy of the champion is too optimistic.",
            MIN_SHARED,
            registry.record_test_decision(uri, challenger, data.digest),
        )
    if is_better or cfg.force:
        registry.promote(uri, challenger)
        log.info("%s version %s is now the champion (%s)", name, challenger.version, reason)
    else:
        log.info("the champion stays (%s); force=true promotes the challenger anyway", reason)


def _chooses_images(overrides: Sequence[str]) -> bool:
    """Whether overrides choose other images than those that the models were trained with."""
    keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
    return any(key == "data" or (key.startswith("data.") and key != "data.root") for key in keys)


def _shared_validation(
    data: Dataset, loaded: Mapping[str, TrainedModel], cfg: DictConfig, overrides: Sequence[str]
) -> Split:
    """Return the images on which both models were validated: neither was trained on them.

    There are none if a model was logged without a run that says what it was trained on.
    """
    val = data.val
    shared = np.zeros(len(val), bool)
    if all(model.run_id for model in loaded.values()):
        champions = load_data_for(loaded[CHAMPION], cfg, overrides).val
        shared = np.isin(val.indices, champions.indices)
    return Split(val.images[shared], val.labels[shared], val.indices[shared])


def _is_correct(model: TrainedModel, split: Split) -> NDArray[np.bool_]:
    """Return whether the model predicts each image of the split correctly, [N]."""
    correct: NDArray[np.bool_] = (
        model.probabilities(split.images.numpy()).argmax(1) == split.labels.numpy()
    )
    return correct


def compare(champion: NDArray[np.bool_] | None, challenger: NDArray[np.bool_]) -> tuple[bool, str]:
    """Say whether the challenger is significantly better, and why.

    Args:
        champion: whether the champion is correct on each image, [N]; None without a champion.
        challenger: the same of the challenger.
    """
    if champion is None:
        return True, "there was no champion yet"
    p = metrics.mcnemar(champion, challenger)
    is_better = challenger.mean() > champion.mean() and p < metrics.SIGNIFICANCE_LEVEL
    return bool(is_better), f"McNemar's exact test: p = {p:.2g}"


def _check_same_data(champion: Mapping[str, str], challenger: Mapping[str, str]) -> None:
    """Raise UserError if the tags of two versions say that they were trained on different data."""
    if _data_of(champion) != _data_of(challenger):
        before, now = (
            f"{tags.get('data')} ({tags.get('data.sha256', '')[:8]})"
            for tags in (champion, challenger)
        )
        raise UserError(
            f"the champion was trained on {before}, the challenger on {now}: set force=true, or "
            "tracking.register=<another name> for the sweeps of each dataset"
        )


def _data_of(tags: Mapping[str, str]) -> str | None:
    """Return the sha256 of the dataset that a version was trained on."""
    return tags.get("data.sha256")


def _table(
    loaded: Mapping[str, TrainedModel],
    correct: Mapping[str, Mapping[str, NDArray[np.bool_]]],
    data: Dataset,
) -> str:
    titles = list(correct)
    columns = ("", "model", *(f"{title} %" for title in titles), "right alone", "ms an image", "MB")
    rows = []
    for alias, model in loaded.items():
        decisive = correct[titles[0]]
        others = [right for other, right in decisive.items() if other != alias]
        alone = f"{int((decisive[alias] & ~others[0]).sum()):,}" if others else ""
        latency = f"{median_ms(model.probabilities, data.test.images[:1].numpy()):.2f}"
        percents = (f"{100 * correct[title][alias].mean():.2f}" for title in titles)
        rows.append((alias, model.name, *percents, alone, latency, f"{model.n_bytes / 1e6:.2f}"))
    sizes = (f"{len(right[CHALLENGER]):,} {title}" for title, right in correct.items())
    return console.table(columns, rows, f"{' and '.join(sizes)} images of {data.name}")
