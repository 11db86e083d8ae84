"""One run from its configuration to its objective: the whole path."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from mnist_sweep import models
from mnist_sweep.analysis import metrics
from mnist_sweep.common import signals
from mnist_sweep.common.build import build
from mnist_sweep.common.configs import differences, flatten
from mnist_sweep.common.console import table
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.augment import build_augment
from mnist_sweep.data.dataset import Dataset, load_dataset, to_float
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training.config import EPOCH_METRICS
from mnist_sweep.training.device import autocast_dtype, describe, pick_device
from mnist_sweep.training.step import resized
from mnist_sweep.training.trainer import Evaluation, State, Trainer

log = logging.getLogger(__name__)


def train(cfg: DictConfig, directory: Path, tracker: Tracker, trial: Trial) -> float:
    """Train one model and return the objective of its best epoch.

    Args:
        cfg: a `config.Config`.
        directory: where the checkpoints go.
        tracker: records the run.
        trial: hears of every epoch, and may end the run early.

    Raises:
        UserError: the configuration does not fit the data, the device or the run to resume; or
            the loss diverges.
    """
    started = time.monotonic()
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    data = load_dataset(cfg.data).to(device)
    model = build_model(cfg.model, data)
    trainer = build_trainer(cfg, model, data, directory)
    if cfg.trainer.resume:
        resume(cfg, trainer)
        started -= trainer.state.seconds  # count the interrupted attempts too
    log_setup(model, data, directory)

    tags = {"data": data.name, "data.sha256": data.digest, "device": describe(device)}
    with signals.obeyed(), tracker.run(tags, flatten(cfg)):
        sizes = {name: len(split) for name, split in data.splits.items()}
        tracker.log_dataset(data.name, data.digest, cfg.data.root, sizes)
        state = trainer.fit(tracker, trial)
        summary = {
            "best_epoch": state.best_epoch,
            "n_parameters": models.n_parameters(model),
            "fit_s": state.seconds,
            **{f"best/{name}": state.history[state.best_epoch - 1][name] for name in EPOCH_METRICS},
        }
        if state.pruned:
            tracker.set_tags({"state": "pruned"})
        else:
            val, test = trainer.evaluate(data.val), trainer.evaluate(data.test)
            summary |= {"test/loss": test.loss, "test/accuracy": test.accuracy}
            pictures = cfg.tracking.figures or ("few" if trial.number is not None else "all")
            tracker.log_artifacts(
                partial(
                    write_results,
                    data=data,
                    state=state,
                    val=val,
                    test=test,
                    model=model,
                    pictures=pictures,
                )
            )
            if cfg.tracking.log_model:
                example = to_float(data.val.images[:2].cpu()).numpy()
                tracker.log_model(model.cpu().eval(), example, data.classes)
        summary["run_s"] = time.monotonic() - started
        tracker.log_metrics(summary, step=state.epoch)
        trial.finish(summary)
    log_result(state, summary)
    return float(summary[f"best/{cfg.objective}"])


def build_model(cfg: DictConfig, data: Dataset) -> nn.Module:
    """Build the network of the node `model` with its normalisation, on the device of the data."""
    net = build(cfg, in_shape=data.shape, n_classes=len(data.classes))
    model = models.Classifier(net, data.mean, data.std)
    return model.to(data.train.images.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_trainer(cfg: DictConfig, model: nn.Module, data: Dataset, directory: Path) -> Trainer:
    check_sizes(cfg, model, data)
    n_train, device = len(data.train), data.train.images.device
    # fused: one kernel for all parameters, on the CPU too; left out where an optimizer has none
    optimizer = build(cfg.optimizer, model.parameters(), fused=device.type != "mps")
    return Trainer(
        model,
        optimizer,
        build_schedule(cfg, optimizer, steps_per_epoch=-(-n_train // cfg.data.batch_size)),
        data,
        OmegaConf.to_object(cfg.trainer),  # type: ignore[arg-type]  # a TrainerConfig
        interval=cfg.scheduler.interval,
        batch_size=cfg.data.batch_size,
        augment=build_augment(cfg.data),
        autocast_dtype=autocast_dtype(cfg.trainer.precision, device),
        objective=cfg.objective,
        maximize=cfg.direction == "maximize",
        directory=directory,
        seed=cfg.seed,
    )


def check_sizes(cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
    """Raises UserError where this model cannot take these batches, or images of this size."""
    batch_size, n_train = cfg.data.batch_size, len(data.train)
    if batch_size > n_train:
        raise UserError(
            f"data.batch_size={batch_size} is larger than the {n_train} training images"
        )
    if (n_train % batch_size == 1 or batch_size == 1) and not models.learns_from_one(
        model, data.shape
    ):
        raise UserError(
            f"data.batch_size={batch_size} leaves one of {n_train} images for the last batch, of which "
            "this model's batch norm has no variance; take another size"
        )
    if (share := cfg.trainer.resize_from) < 1:
        height, width = resized(data.shape[1:], share)
        try:
            models.summary(model, (data.shape[0], height, width))
        except RuntimeError as error:
            raise UserError(
                f"trainer.resize_from={share} leaves too few pixels: {error}"
            ) from error


def resume(cfg: DictConfig, trainer: Trainer) -> None:
    """Go on where the run in `trainer.resume` stopped, and say what is set otherwise than there."""
    directory = Path(cfg.trainer.resume)
    settings = directory / ".hydra" / "config.yaml"
    changed = differences(OmegaConf.load(settings), cfg) if settings.is_file() else []  # type: ignore[arg-type]
    # the checkpoint brings these, whatever is set now
    kept = ["optimizer.", "scheduler.", "trainer.ema_decay"]
    if cfg.scheduler.total_steps_as:
        kept += ["trainer.max_epochs", "data.batch_size", "data.train_size", "data.val_size"]
    if refused := [change for change in changed if change.startswith(tuple(kept))]:
        raise UserError(
            f"the run in {directory} goes on with the optimizer and the schedule that it was begun "
            f"with: {'; '.join(refused)} cannot change"
        )
    trainer.restore(directory)
    if changed:
        log.warning("WARNING: not as in %s: %s", directory, "; ".join(changed))


def build_schedule(cfg: DictConfig, optimizer: Optimizer, steps_per_epoch: int) -> Any:
    """The one place where epochs become steps."""
    if cfg.scheduler.factory is None:
        return None
    length = {}
    if cfg.scheduler.total_steps_as:
        length[cfg.scheduler.total_steps_as] = cfg.trainer.max_epochs * steps_per_epoch
    return build(cfg.scheduler.factory, optimizer, **length)


def log_setup(model: nn.Module, data: Dataset, directory: Path) -> None:
    """Log the data, the device, the layers of the model, and the run's directory."""
    parts = [f"{len(split):,} {name}" for name, split in data.splits.items()]
    device = describe(data.train.images.device)
    log.info("%s: %s images, on %s", data.name, ", ".join(parts), device)
    title = f"model: {models.n_parameters(model):,} parameters"
    layers = [(*about, f"{n:>10,}" if n else "") for *about, n in models.summary(model, data.shape)]
    log.info(table(("layer", "output", "parameters"), layers, title))
    log.info("run directory: %s", directory)


def log_result(state: State, summary: Mapping[str, float]) -> None:
    """Log the best epoch and the test metrics."""
    best = f"best epoch {state.best_epoch}: validation {100 * summary['best/val/accuracy']:.2f} %"
    if state.pruned:
        log.info("pruned after epoch %d; %s", state.epoch, best)
        return
    test = f"test {100 * summary['test/accuracy']:.2f} % (loss {summary['test/loss']:.4f})"
    log.info("%s, %s, %.1f s", best, test, summary["run_s"])


def write_results(
    folder: Path,
    *,
    data: Dataset,
    state: State,
    val: Evaluation,
    test: Evaluation,
    model: nn.Module,
    pictures: str,
) -> None:
    """What a run leaves for the eye and for later comparison."""
    from mnist_sweep.analysis import figures  # imports matplotlib

    val_labels, test_labels = data.val.labels.cpu().numpy(), data.test.labels.cpu().numpy()
    np.savez_compressed(
        folder / "predictions.npz",
        val_probabilities=val.probabilities,
        val_labels=val_labels,
        val_indices=data.val.indices,
        test_probabilities=test.probabilities,
        test_labels=test_labels,
    )
    matrix = metrics.confusion_matrix(test.probabilities.argmax(1), test_labels, len(data.classes))
    metrics.confusion_table(matrix, data.classes).to_csv(folder / "confusion_matrix.csv")
    drawn = figures.of_run(
        pictures,
        history=state.history,
        best_epoch=state.best_epoch,
        images=data.test.images.cpu().numpy(),
        labels=test_labels,
        probabilities=test.probabilities,
        classes=data.classes,
        first_layer=models.first_layer(model, data.shape),
        data_name=data.name,
    )
    for name, figure in drawn:
        figure.savefig(folder / f"{name}.png")
