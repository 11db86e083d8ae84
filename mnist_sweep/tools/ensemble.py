"""Votes of trained models: `python -m mnist_sweep.ensemble sweep=<name>` or `runs=[<id>,<id>]`.

Predictions are chosen on the validation images, which they must share; the test set only judges.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from mnist_sweep import app, models
from mnist_sweep.analysis import figures, metrics
from mnist_sweep.analysis.predictions import (
    Predictions,
    draw_hardest_images,
    load_data,
    load_predictions,
)
from mnist_sweep.common import console
from mnist_sweep.common import signals as interrupt
from mnist_sweep.common.configs import flatten
from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.data.dataset import Dataset, to_float
from mnist_sweep.tools.trained_model import from_mlflow
from mnist_sweep.tracking import queries as recorded
from mnist_sweep.tracking import run as tracking

log = logging.getLogger("mnist_sweep.ensemble")  # not __main__, of which Hydra shows nothing

CONFUSIONS = 5  # that are printed; the file has all


Way = Callable[[NDArray[np.float32]], NDArray[np.int64]]  # [M, N, n_classes] -> [N]


@dataclass(frozen=True)
class Vote:
    name: str
    predicted: NDArray[np.int64]  # [N] of the test images
    test_accuracy: float
    val_accuracy: float | None


def load_members(uri: str, experiment_id: str, cfg: DictConfig) -> Predictions:
    """Raises UserError where there are fewer than two."""
    if (cfg.sweep is None) == (not cfg.runs):
        raise UserError("expected either sweep=<name> or runs=[<run id>,<run id>]")
    runs = recorded.finished_runs(uri, experiment_id, sweep=cfg.sweep, ids=list(cfg.runs))
    if len(runs) < 2:
        raise UserError(
            f"{len(runs)} finished runs of sweep={cfg.sweep} in {without_password(uri)}: "
            "expected at least 2"
        )
    return load_predictions(uri, runs)


def select(members: Predictions, rounds: int) -> NDArray[np.int64]:
    """[M] weights: greedy on validation, or all alike where the models share no validation images."""
    if members.val is None:
        log.warning(
            "no selection: the runs held out different validation images; give them one split, "
            "data.split_seed=0, when their seeds differ"
        )
        return np.ones(len(members.names), dtype=np.int64)
    return metrics.greedy_selection(members.val, members.val_labels, rounds)


def vote(members: Predictions, weights: NDArray[np.int64]) -> list[Vote]:
    def mean(weights: NDArray[np.int64]) -> Way:
        return lambda probabilities: np.average(probabilities, 0, weights=weights).argmax(1)

    ways: dict[str, Way] = {
        "majority of all": metrics.majority_vote,
        "mean of all": mean(np.ones_like(weights)),
        "greedy selection": mean(weights),
    }
    votes = []
    for name, way in ways.items():
        predicted = way(members.test)
        test = float((predicted == members.test_labels).mean())
        val = None
        if members.val is not None:
            val = float((way(members.val) == members.val_labels).mean())
        votes.append(Vote(name, predicted, test, val))
    return votes


def summary(members: Predictions, votes: Sequence[Vote]) -> dict[str, float]:
    """Accuracies by name; the gain is that of the selection over the model that is best on validation."""
    test_accuracy = [metrics.accuracy(p, members.test_labels) for p in members.test]
    single = test_accuracy[members.best]
    found = {
        "n_members": float(len(members.names)),
        "best_single/val/accuracy": float(members.val_accuracy[members.best]),
        "best_single/test/accuracy": single,
    }
    for each in votes:
        key = each.name.split()[0]
        found[f"{key}/test/accuracy"] = each.test_accuracy
        if each.val_accuracy is not None:
            found[f"{key}/val/accuracy"] = each.val_accuracy
    return found | {"gain": found["greedy/test/accuracy"] - single}


def as_table(
    members: Predictions,
    weights: NDArray[np.int64],
    votes: Sequence[Vote],
    result: Mapping[str, float],
) -> str:
    rows = []
    single = result["best_single/test/accuracy"]
    for i, name in enumerate(members.names):
        test = metrics.accuracy(members.test[i], members.test_labels)
        best = "best single" if i == members.best else ""
        val = f"{100 * members.val_accuracy[i]:.2f}"
        rows.append((name, str(weights[i]), val, f"{100 * test:.2f}", best))
    for each in votes:
        test = each.test_accuracy
        val = "" if each.val_accuracy is None else f"{100 * each.val_accuracy:.2f}"
        rows.append((each.name, "", val, f"{100 * test:.2f}", f"{100 * (test - single):+.2f}"))
    return console.table(("", "weight", "validation %", "test %", "gain"), rows)


def write(
    folder: Path,
    *,
    members: Predictions,
    votes: Sequence[Vote],
    table: str,
    classes: Sequence[str],
    data: Dataset | None,
) -> None:
    """The table, who errs where, how the errors overlap, and what is confused with what."""
    wrong = metrics.errors(members.test, members.test_labels)
    (folder / "ensemble.txt").write_text(table + "\n")
    predicted = members.test.argmax(2)
    rows = [
        (
            i,
            classes[members.test_labels[i]],
            wrong[:, i].sum(),
            *(classes[k] for k in predicted[:, i]),
        )
        for i in np.flatnonzero(wrong.any(0))
    ]
    columns = ["test image", "true", "models wrong", *members.names]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "errors.csv", index=False)
    pairs = [(classes[t], classes[p], count) for t, p, count in confusions(members)]
    columns = ["true", "predicted", "times, all models"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "confusions.csv", index=False)
    title = "Test images that two models both get wrong"
    figure = figures.error_overlap(metrics.overlap(wrong), members.names, title)
    figure.savefig(folder / "error_overlap.png")
    matrix = metrics.confusion_matrix(votes[-1].predicted, members.test_labels, len(classes))
    title = figures.confusion_title(matrix, votes[-1].name)
    figures.confusion_matrix(matrix, classes, title).savefig(folder / "confusion_matrix.png")
    if data is not None:
        draw_hardest_images(members, data).savefig(folder / "hardest_images.png")


def confusions(members: Predictions) -> list[tuple[int, int, int]]:
    """(true, predicted, count), counted over all models."""
    n = members.test.shape[2]
    matrices = [metrics.confusion_matrix(p.argmax(1), members.test_labels, n) for p in members.test]
    return metrics.ranked_confusions(np.sum(matrices, axis=0))


def report(members: Predictions, classes: Sequence[str]) -> None:
    wrong = metrics.errors(members.test, members.test_labels)
    n_models, n_images = wrong.shape
    histogram = np.bincount(wrong.sum(0), minlength=n_models + 1)
    log.info(
        "of %s test images %d are wrong for one model or more, %d for all %d",
        f"{n_images:,}",
        n_images - histogram[0],
        histogram[n_models],
        n_models,
    )
    most = [f"{classes[t]} as {classes[p]} ({n})" for t, p, n in confusions(members)[:CONFUSIONS]]
    log.info("most frequent confusions, all models: %s", ", ".join(most))


def combine(cfg: DictConfig) -> None:
    if cfg.rounds < 1:
        raise UserError(f"rounds={cfg.rounds}: expected at least 1")
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store)
    experiment_id = tracking.prepare(uri, cfg.store, cfg.tracking.experiment)
    members = load_members(uri, experiment_id, cfg)
    weights = select(members, cfg.rounds)
    votes = vote(members, weights)
    result = summary(members, votes)
    table = as_table(members, weights, votes, result)
    log.info(table)
    data = load_data(uri, members)
    classes = data.classes if data else tuple(map(str, range(members.test.shape[2])))
    report(members, classes)
    directory = Path(HydraConfig.get().runtime.output_dir)
    produce = partial(write, members=members, votes=votes, table=table, classes=classes, data=data)
    produce(directory)
    log.info("tables and pictures: %s", directory)
    if not cfg.tracking.enabled:
        return
    name = cfg.tracking.run_name or f"ensemble {cfg.sweep or ''}".strip()
    chosen = {
        run_id: int(weight)
        for run_id, weight in zip(members.run_ids, weights, strict=True)
        if weight
    }
    tags = {"kind": "ensemble", "members": " ".join(f"{k}*{w}" for k, w in chosen.items())}
    if data is not None:
        tags |= {"data": data.name, "data.sha256": data.digest}
    mixture = mix(uri, chosen) if cfg.tracking.log_model and data is not None else None
    with (
        interrupt.obeyed(),
        tracking.start_run(
            uri, experiment_id, name=name, tags=tags, params=flatten(cfg)
        ) as tracker,
    ):
        tracker.log_metrics(result, step=0)
        tracker.log_artifacts(produce)
        settings = recorded.config_of(uri, members.run_ids[0])  # for the data that it is of
        tracker.log_artifacts(lambda folder: OmegaConf.save(settings, folder / "config.yaml"))
        if mixture is not None and data is not None:
            example = to_float(data.test.images[:2]).numpy()
            tracker.log_model(mixture, example, data.classes, registered_name=cfg.model_name)
            log.info("registered as model %s", cfg.model_name)


def mix(uri: str, chosen: Mapping[str, int]) -> models.Mixture | None:
    """One model of the runs and their weights; None where one of them has no model any more."""
    try:
        members = [from_mlflow(uri, run_id).model for run_id in chosen]
    except UserError as error:
        log.warning("WARNING: no model of the ensemble is registered: %s", error)
        return None
    return models.Mixture(members, list(chosen.values()))


def main() -> None:
    app.tool("ensemble", combine)


if __name__ == "__main__":
    main()
