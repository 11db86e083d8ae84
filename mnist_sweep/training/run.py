"""One training run, from its configuration to its objective."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from mnist_sweep import models
from mnist_sweep.analysis import metrics
from mnist_sweep.common import signals
from mnist_sweep.common.build import build
from mnist_sweep.common.configs import differences, read_config
from mnist_sweep.common.console import table
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.augment import build_augment
from mnist_sweep.data.dataset import Dataset, load_dataset, to_float
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import CONFUSION_MATRIX, Tracker
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import EPOCH_METRICS
from mnist_sweep.training.device import autocast_dtype, describe, pick_device
from mnist_sweep.training.saved_model import SavedModel
from mnist_sweep.training.schedule import build_schedule
from mnist_sweep.training.step import TrainingStep, scaled_size
from mnist_sweep.training.trainer import Evaluation, Objective, State, Trainer

log = logging.getLogger(__name__)


def train(cfg: DictConfig, directory: Path, tracker: Tracker, trial: Trial) -> float:
    """Train one model and return the objective of its best epoch.

    The checkpoints go to `directory`. `trial` receives the metrics of each epoch and may end the run.

    Raises:
        UserError: `cfg` does not fit the data, the device or the run to resume; the loss diverges.
    """
    started = time.monotonic()
    device = pick_device(cfg.device)
    torch.manual_seed(cfg.seed)
    data = load_dataset(cfg.data).to(device)
    trainer = start_trainer(cfg, data, directory, trial)
    model = trainer.step.model
    started -= trainer.state.seconds  # count the time of the interrupted attempts
    tags = {"data": data.name, "data.sha256": data.digest, "device": describe(device)}
    n_parameters = log_setup(model, data, tags["device"], directory)

    with signals.obeyed(), tracker.run(tags):
        sizes = {name: len(split) for name, split in data.splits.items()}
        tracker.log_dataset(data.name, data.digest, cfg.data.root, sizes)
        state = trainer.fit(tracker, trial)
        best = {name: state.history[state.best_epoch - 1][name] for name in EPOCH_METRICS}
        summary = {f"best/{name}": value for name, value in best.items()}
        summary |= {"best_epoch": state.best_epoch, "fit_s": state.seconds}
        summary["n_parameters"] = n_parameters
        if state.pruned:
            tracker.set_tags({"state": "pruned"})
        else:
            val, test = map(trainer.evaluate, (data.val, data.test))
            summary |= {"test/loss": test.loss, "test/accuracy": test.accuracy}
            selection = cfg.tracking.figures or ("all" if trial.number is None else "few")
            tracker.log_artifacts(lambda path: write_results(path, trainer, val, test, selection))
            if selection != "none":
                log_confusion_matrix(tracker, data, test)
            if cfg.tracking.log_model:
                log_model(tracker, cfg, model.cpu().eval(), data)
        summary["run_s"] = time.monotonic() - started
        tracker.log_metrics(summary, step=0)  # MLflow draws one value at a later step as a dot
        trial.finish({**best, **summary})  # a sweep names its objectives without best/
    log_result(state, summary)
    return best[cfg.objective]


def log_model(tracker: Tracker, cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
    """Record the model, on the CPU in eval mode, with its configuration."""
    config: Any = OmegaConf.to_container(cfg.model, resolve=True)
    saved = SavedModel([config], [model.state_dict()], [1.0], data.shape, data.classes)
    example = to_float(data.val.images[:2].cpu()).numpy()
    tracker.log_model(model, example, data.classes, saved.save_in)


def rehearse(cfg: DictConfig, data: Dataset) -> None:
    """Build what a run needs, on the CPU, and throw it away. Raises UserError like `train`."""
    pick_device(cfg.device)
    model = build_model(cfg.model, data)
    check_sizes(cfg, model, data)
    optimizer = build(cfg.optimizer, model.parameters())
    build_schedule(cfg.scheduler, optimizer, total_steps=100)


def build_model(cfg: DictConfig, data: Dataset) -> nn.Module:
    """Build the network of the config group `model`, with its normalisation, on the data's device.

    Raises:
        UserError: the network cannot be built, or does not map images of this shape to logits.
    """
    net = build(cfg, in_shape=data.shape, n_classes=len(data.classes))
    if not isinstance(net, nn.Module):
        raise UserError(f"model._target_={cfg._target_}: expected a class of networks (nn.Module)")
    models.check_logits(net, data.shape, len(data.classes))
    model = models.Classifier(net, data.mean, data.std).to(data.train.images.device)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_trainer(cfg: DictConfig, model: nn.Module, data: Dataset, directory: Path) -> Trainer:
    """Build the trainer and its parts.

    Raises:
        UserError: the model cannot train on batches or images of these sizes.
    """
    check_sizes(cfg, model, data)
    device = data.train.images.device
    settings = OmegaConf.to_object(cfg.trainer)  # a TrainerConfig
    # fused: one kernel for all parameters, on the CPU too; `build` omits it if the optimizer has none
    optimizer = build(cfg.optimizer, model.parameters(), fused=device.type != "mps")
    # here epochs become steps, and nowhere else
    total_steps = cfg.trainer.max_epochs * -(-len(data.train) // cfg.data.batch_size)
    schedule = build_schedule(cfg.scheduler, optimizer, total_steps)
    step = TrainingStep(
        model,
        optimizer,
        data.train,
        settings,  # type: ignore[arg-type]
        autocast_dtype=autocast_dtype(cfg.trainer.precision, device),
        augment=build_augment(cfg.data, data),
        seed=cfg.seed,
    )
    return Trainer(
        data,
        step,
        schedule,
        settings,  # type: ignore[arg-type]
        objective=Objective(cfg.objective, maximize=cfg.direction == "maximize"),
        directory=directory,
        batch_size=cfg.data.batch_size,
    )


def check_sizes(cfg: DictConfig, model: nn.Module, data: Dataset) -> None:
    """Raise UserError if the model cannot train on batches or images of these sizes."""
    batch_size, n_train, scale = cfg.data.batch_size, len(data.train), cfg.trainer.resize_from
    height, width = scaled_size(data.shape[1:], scale)  # at the start of progressive resizing
    if batch_size > n_train:
        raise UserError(
            f"data.batch_size={batch_size} is larger than the {n_train} training images"
        )
    last_is_one = batch_size == 1 or n_train % batch_size == 1
    if last_is_one and not models.can_train_on_one_image(model, data.shape):
        raise UserError(
            f"data.batch_size={batch_size} leaves one of {n_train} images for the last batch, and one "
            "image has no variance for the batch norm of this model; choose another size"
        )
    if scale < 1:
        try:
            models.summary(model, (data.shape[0], height, width))
        except RuntimeError as error:
            raise UserError(
                f"trainer.resize_from={scale} leaves too few pixels: {error}"
            ) from error


def start_trainer(cfg: DictConfig, data: Dataset, directory: Path, trial: Trial) -> Trainer:
    """Build a trainer that continues the earlier attempt of `trial`, or else `trainer.resume`.

    An attempt whose checkpoint is broken is lost, and the trial starts over.

    Raises:
        UserError: the run in `trainer.resume` cannot be resumed; see `resume`.
    """

    def fresh() -> Trainer:
        return build_trainer(cfg, build_model(cfg.model, data), data, directory)

    trainer = fresh()
    if trial.resume_from is not None:
        try:
            resume(cfg, trial.resume_from, trainer)
        except UserError as error:
            log.warning("WARNING: trial %s starts over: %s", trial.number, error)
            torch.manual_seed(cfg.seed)
            trainer = fresh()  # a part of the other may have been restored
        else:
            return trainer
    if cfg.trainer.resume:
        resume(cfg, Path(cfg.trainer.resume), trainer)
    return trainer


def check_resume(cfg: DictConfig) -> None:
    """Raise UserError if `trainer.resume` cannot be resumed, as far as a look at its files can tell."""
    if cfg.trainer.resume:
        directory = Path(cfg.trainer.resume)
        _changed_settings(cfg, directory)
        checkpoint.load(directory / checkpoint.LAST)


def _changed_settings(cfg: DictConfig, directory: Path) -> list[str]:
    """Return the settings in which the run in `directory` differs, as "key: old -> new".

    Raises:
        UserError: `directory` is a file, or a setting that the checkpoint contains has changed.
    """
    if directory.is_file():
        raise UserError(f"trainer.resume={directory} is a file: expected the directory of a run")
    settings = directory / ".hydra" / "config.yaml"
    changes = []
    if settings.is_file():
        before = read_config(settings)
        try:
            changes = differences(before, cfg, cfg.sweep.may_change)
        except OmegaConfBaseException as error:
            raise UserError(f"{settings} does not resolve: {str(error).splitlines()[0]}") from error
    # the checkpoint contains the state that these settings made
    fixed = ["optimizer.", "scheduler.", "trainer.ema_decay"]
    if cfg.scheduler.total_steps_as:
        fixed += ["trainer.max_epochs", "data.batch_size", "data.train_size", "data.val_size"]
    if refused := [change for change in changes if change.startswith(tuple(fixed))]:
        raise UserError(
            f"cannot resume from {directory}: settings of the optimizer and of the schedule cannot "
            f"change: {'; '.join(refused)}"
        )
    return changes


def resume(cfg: DictConfig, directory: Path, trainer: Trainer) -> None:
    """Restore the run in `directory`, and warn about settings that differ from that run's.

    Raises:
        UserError: its checkpoint does not fit, or a setting that it contains has changed.
    """
    changes = _changed_settings(cfg, directory)
    trainer.restore(directory)
    if changes:
        log.warning("WARNING: settings differ from those of %s: %s", directory, "; ".join(changes))


def log_setup(model: nn.Module, data: Dataset, device: str, directory: Path) -> int:
    """Log the data, the device, the model and the run's directory; return the number of parameters."""
    parts = [f"{len(split):,} {name}" for name, split in data.splits.items()]
    log.info("%s: %s images, on %s", data.name, ", ".join(parts), device)
    n_parameters = models.n_parameters(model)
    title = f"model: {n_parameters:,} parameters"
    layers = [(*about, f"{n:>10,}" if n else "") for *about, n in models.summary(model, data.shape)]
    log.info(table(("layer", "output", "parameters"), layers, title))
    log.info("run directory: %s", directory)
    return n_parameters


def log_result(state: State, summary: Mapping[str, float]) -> None:
    """Log the best epoch and the test metrics."""
    best = f"best epoch {state.best_epoch}: validation {100 * summary['best/val/accuracy']:.2f} %"
    if state.pruned:
        log.info("pruned after epoch %d; %s", state.epoch, best)
        return
    test = f"test {100 * summary['test/accuracy']:.2f} % (loss {summary['test/loss']:.4f})"
    log.info("%s, %s, %.1f s", best, test, summary["run_s"])


def log_confusion_matrix(tracker: Tracker, data: Dataset, test: Evaluation) -> None:
    """Record a picture of the confusion matrix that can be seen beside those of other runs."""
    from mnist_sweep.analysis import figures  # imports matplotlib

    predicted, labels = test.probabilities.argmax(1), data.test.labels.cpu().numpy()
    matrix = metrics.confusion_matrix(predicted, labels, len(data.classes))
    figure = figures.small_confusion_matrix(matrix, data.classes)
    tracker.log_image(CONFUSION_MATRIX, figures.to_pixels(figure))


def write_results(
    folder: Path, trainer: Trainer, val: Evaluation, test: Evaluation, selection: str
) -> None:
    """Write the predictions, the confusion matrix and the figures of a finished run.

    Args:
        selection: which figures to draw: "all", "few" or "none".
    """
    from mnist_sweep.analysis import figures  # imports matplotlib

    data, state = trainer.data, trainer.state
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
    drawn = figures.run_figures(
        selection,
        history=state.history,
        best_epoch=state.best_epoch,
        images=data.test.images.cpu().numpy(),
        labels=test_labels,
        probabilities=test.probabilities,
        classes=data.classes,
        first_layer=models.first_layer(trainer.step.model, data.shape),
        data_name=data.name,
    )
    for name, figure in drawn:
        figure.savefig(folder / f"{name}.png")
