"""Combines the models of a sweep: selects on the validation images, measures on the test images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.predictions import (
    Predictions,
    draw_hardest_images,
    load_data,
    load_predictions,
)
from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.data.dataset import Dataset, to_float
from mnist_sweep.tools.output import make_output_directory, open_run
from mnist_sweep.tools.trained_model import load_saved
from mnist_sweep.tracking import queries, registry
from mnist_sweep.tracking.run import prepare, store_uri
from mnist_sweep.training.saved_model import SavedModel

log = logging.getLogger(__name__)

N_CONFUSIONS = 5  # to print; confusions.csv has all

Combine = Callable[[NDArray[np.float32]], NDArray[np.int64]]  # [M, N, n_classes] -> classes [N]


@dataclass(frozen=True)
class Vote:
    """The result of one way to combine the models."""

    name: str
    predicted: NDArray[np.int64]  # [N] for the test images
    test_accuracy: float
    val_accuracy: float | None  # None if the models share no validation images


def run(cfg: DictConfig, _overrides: Sequence[str]) -> None:
    """Combine the models that `cfg.sweep` or `cfg.runs` names, and record and register the result."""
    registry.check_name("model_name", cfg.model_name)
    if (cfg.sweep is None) == (not cfg.runs):
        raise UserError("expected either sweep=<name> or runs=<run id>,<run id>")
    uri = store_uri(cfg.tracking.uri, cfg.store)
    queries.connect(uri)  # `prepare` would create a missing store
    experiment_id = prepare(uri, cfg.store, cfg.tracking.experiment)
    predictions = load(uri, experiment_id, cfg)
    weights = select(predictions, cfg.rounds)
    votes = vote(predictions, weights)
    scores = summary(predictions, votes)
    table = as_table(predictions, weights, votes, scores)
    log.info(table)
    data = load_data(uri, predictions)
    n_classes = predictions.test.shape[2]
    classes = data.classes if data is not None else tuple(map(str, range(n_classes)))
    _log_errors(predictions, classes)
    write = partial(
        _write, predictions=predictions, votes=votes, table=table, classes=classes, data=data
    )
    directory = make_output_directory(cfg.store)
    write(directory)
    log.info("tables and figures: %s", directory)
    if cfg.tracking.enabled:
        _record(
            cfg, predictions=predictions, weights=weights, scores=scores, data=data, write=write
        )


def _record(
    cfg: DictConfig,
    *,
    predictions: Predictions,
    weights: NDArray[np.int64],
    scores: Mapping[str, float],
    data: Dataset | None,
    write: Callable[[Path], None],
) -> None:
    """Record the ensemble as a run, and register its model unless a part of it is missing."""
    uri = store_uri(cfg.tracking.uri, cfg.store)
    pairs = zip(predictions.run_ids, weights, strict=True)
    selected = {run_id: int(weight) for run_id, weight in pairs if weight}
    tags = {"kind": "ensemble", "members": " ".join(f"{k}*{w}" for k, w in selected.items())}
    if data is not None:
        tags |= {"data": data.name, "data.sha256": data.digest}
    mixture = combine(uri, selected) if cfg.tracking.log_model and data is not None else None
    name = cfg.tracking.run_name or f"ensemble {cfg.sweep or ''}".strip()
    with open_run(cfg, name, tags) as run:
        run.log_metrics(scores, step=0)
        run.log_artifacts(write)
        # the tools read from it which dataset the models were trained on
        settings = queries.config_of(uri, predictions.run_ids[0])
        run.log_artifacts(lambda folder: OmegaConf.save(settings, folder / "config.yaml"))
        if mixture is not None and data is not None:
            example = to_float(data.test.images[:2]).numpy()
            run.log_model(
                mixture.build(),
                example,
                data.classes,
                mixture.save_in,
                registered_name=cfg.model_name,
            )
            log.info("registered as model %s", cfg.model_name)


def load(uri: str, experiment_id: str, cfg: DictConfig) -> Predictions:
    """Load the predictions of the runs that `cfg` names. Raises UserError if there are fewer than 2."""
    if cfg.sweep is None:
        runs = queries.runs_by_id(uri, list(cfg.runs))
    else:
        runs = queries.trained_runs(uri, experiment_id, cfg.sweep)
    if len(runs) < 2:
        source = f"runs={','.join(cfg.runs)}" if cfg.sweep is None else f"sweep={cfg.sweep}"
        raise UserError(
            f"{source} names {len(runs)} finished runs in {mask_url(uri)}: expected at least 2"
        )
    return load_predictions(uri, runs)


def select(predictions: Predictions, rounds: int) -> NDArray[np.int64]:
    """Select models greedily on the validation images.

    Returns:
        The models' weights [M]; all 1 if the models share no validation images.
    """
    if predictions.val is None:
        log.warning(
            "no selection: the runs have different validation images; runs with different seeds "
            "share them with data.split_seed=0"
        )
        return np.ones(len(predictions.names), dtype=np.int64)
    return metrics.greedy_selection(predictions.val, predictions.val_labels, rounds)


def vote(predictions: Predictions, weights: NDArray[np.int64]) -> list[Vote]:
    """Combine the models in three ways. The last one uses the weights of `select`."""

    def mean(weights: NDArray[np.int64]) -> Combine:
        return lambda probabilities: np.average(probabilities, 0, weights=weights).argmax(1)

    ways: dict[str, Combine] = {
        "majority of all": metrics.majority_vote,
        "mean of all": mean(np.ones_like(weights)),
        "greedy selection": mean(weights),
    }
    votes = []
    for name, combine in ways.items():
        predicted = combine(predictions.test)
        test = float((predicted == predictions.test_labels).mean())
        val = None
        if predictions.val is not None:
            val = float((combine(predictions.val) == predictions.val_labels).mean())
        votes.append(Vote(name, predicted, test, val))
    return votes


def summary(predictions: Predictions, votes: Sequence[Vote]) -> dict[str, float]:
    """Return the metrics to record.

    `gain` is the test accuracy of the greedy selection minus that of the best single model, which is
    the best on the validation images.
    """
    best = predictions.best
    single = metrics.accuracy(predictions.test[best], predictions.test_labels)
    scores = {
        "n_members": float(len(predictions.names)),
        "best_single/val/accuracy": float(predictions.val_accuracy[best]),
        "best_single/test/accuracy": single,
    }
    for each in votes:
        key = each.name.split()[0]
        scores[f"{key}/test/accuracy"] = each.test_accuracy
        if each.val_accuracy is not None:
            scores[f"{key}/val/accuracy"] = each.val_accuracy
    return scores | {"gain": scores["greedy/test/accuracy"] - single}


def as_table(
    predictions: Predictions,
    weights: NDArray[np.int64],
    votes: Sequence[Vote],
    scores: Mapping[str, float],
) -> str:
    """Return the table with a row for each model and each way to combine them."""
    rows = []
    single = scores["best_single/test/accuracy"]
    for i, name in enumerate(predictions.names):
        test = metrics.accuracy(predictions.test[i], predictions.test_labels)
        best = "best single" if i == predictions.best else ""
        val = f"{100 * predictions.val_accuracy[i]:.2f}"
        rows.append((name, str(weights[i]), val, f"{100 * test:.2f}", best))
    for each in votes:
        test = each.test_accuracy
        val = "" if each.val_accuracy is None else f"{100 * each.val_accuracy:.2f}"
        rows.append((each.name, "", val, f"{100 * test:.2f}", f"{100 * (test - single):+.2f}"))
    return console.table(("", "weight", "validation %", "test %", "gain"), rows)


def confusions(predictions: Predictions) -> list[tuple[int, int, int]]:
    """Return (true, predicted, count) over all models, the most frequent first."""
    n_classes, labels = predictions.test.shape[2], predictions.test_labels
    matrices = [metrics.confusion_matrix(p.argmax(1), labels, n_classes) for p in predictions.test]
    return metrics.ranked_confusions(np.sum(matrices, axis=0))


def combine(uri: str, weights: Mapping[str, int]) -> SavedModel | None:
    """Combine the models of {run id: weight}; log a warning and return None if one is missing."""
    try:
        parts = [(load_saved(uri, run_id), weight) for run_id, weight in weights.items()]
    except UserError as error:
        log.warning("WARNING: the ensemble is not registered as a model: %s", error)
        return None
    return SavedModel(
        configs=[config for saved, _ in parts for config in saved.configs],
        states=[state for saved, _ in parts for state in saved.states],
        weights=[share * weight for saved, weight in parts for share in saved.weights],
        shape=parts[0][0].shape,
        classes=parts[0][0].classes,
    )


def _log_errors(predictions: Predictions, classes: Sequence[str]) -> None:
    wrong = metrics.errors(predictions.test, predictions.test_labels)
    n_models, n_images = wrong.shape
    histogram = np.bincount(wrong.sum(0), minlength=n_models + 1)
    log.info(
        "at least one model is wrong on %d of %s test images, all %d models on %d",
        n_images - histogram[0],
        f"{n_images:,}",
        n_models,
        histogram[n_models],
    )
    most = [
        f"{classes[true]} as {classes[predicted]} ({count})"
        for true, predicted, count in confusions(predictions)[:N_CONFUSIONS]
    ]
    log.info("most frequent confusions, all models: %s", ", ".join(most))


def _write(
    folder: Path,
    *,
    predictions: Predictions,
    votes: Sequence[Vote],
    table: str,
    classes: Sequence[str],
    data: Dataset | None,
) -> None:
    """Write the table, the errors of each model, their overlap and the confusions."""
    wrong = metrics.errors(predictions.test, predictions.test_labels)
    (folder / "ensemble.txt").write_text(table + "\n")
    predicted = predictions.test.argmax(2)
    rows = [
        (
            i,
            classes[predictions.test_labels[i]],
            wrong[:, i].sum(),
            *(classes[k] for k in predicted[:, i]),
        )
        for i in np.flatnonzero(wrong.any(0))
    ]
    columns = ["test image", "true", "models wrong", *predictions.names]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "errors.csv", index=False)
    pairs = [(classes[t], classes[p], count) for t, p, count in confusions(predictions)]
    columns = ["true", "predicted", "times, all models"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "confusions.csv", index=False)
    title = "Test images that two models both get wrong"
    figure = figures.error_overlap(metrics.overlap(wrong), predictions.names, title)
    figure.savefig(folder / "error_overlap.png")
    matrix = metrics.confusion_matrix(votes[-1].predicted, predictions.test_labels, len(classes))
    title = figures.confusion_title(matrix, votes[-1].name)
    figures.confusion_matrix(matrix, classes, title).savefig(folder / "confusion_matrix.png")
    if data is not None:
        draw_hardest_images(predictions, data).savefig(folder / "hardest_images.png")
