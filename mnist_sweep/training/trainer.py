"""The epoch loop: train, validate, keep the best weights, stop early, resume."""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.signals import Deferred
from mnist_sweep.data.dataset import Dataset, Split, batches
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training.checkpoint import BestModel, Checkpoint, load_best
from mnist_sweep.training.config import EPOCH_METRICS, TrainerConfig
from mnist_sweep.training.progress import epoch_bar, log_epoch
from mnist_sweep.training.schedule import Schedule
from mnist_sweep.training.step import TrainingStep

log = logging.getLogger(__name__)

EVAL_BATCH_SIZE = 125  # fits a CPU's cache: twice as fast as 500, and 100 MiB less
CHECK_EVERY = 50  # steps between two checks of the time limit, and on the CPU of the loss

# Adam's moments of a weight whose gradient stays 0 become denormal numbers, with which a CPU is
# slow: +9 % a step of `simple` after 750 steps. torch's threads inherit the flag when they start, so
# it is set at import.
torch.set_flush_denormal(True)


class DivergedError(UserError):
    """The loss is not finite any more."""


class Evaluation(NamedTuple):
    loss: float  # mean cross-entropy
    accuracy: float  # in 0..1
    probabilities: NDArray[np.float32]  # [N, n_classes]


@dataclass(frozen=True)
class Objective:
    """The metric that picks the best epoch."""

    metric: str  # one of EPOCH_METRICS
    maximize: bool

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the metric with the sign that makes a larger score a better one."""
        return metrics[self.metric] if self.maximize else -metrics[self.metric]


@dataclass
class State:
    """The finished epochs of a run."""

    epoch: int = 0  # number of finished epochs
    best_epoch: int = 0
    best_score: float = -math.inf  # Objective.score of the best epoch
    progress_score: float = -math.inf  # the score that the next one has to exceed by min_delta
    bad_epochs: int = 0  # epochs without such progress
    seconds: float = 0.0  # spent in training and validation
    pruned: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # metrics of each epoch

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises TypeError or ValueError if a field is not what a run saves."""
        # checkpoints of 0.1 have no progress_score
        loaded = State(**{"progress_score": state["best_score"], **state})
        for name, default in vars(State()).items():
            if type(value := getattr(loaded, name)) is not type(default):
                kinds = type(default).__name__, type(value).__name__
                raise TypeError(f"{name}: expected a {kinds[0]}, found a {kinds[1]}")
        if not loaded.bad_epochs >= 0 <= loaded.best_epoch <= loaded.epoch == len(loaded.history):
            raise ValueError(f"{loaded.epoch} epochs with the metrics of {len(loaded.history)}")
        for metrics in loaded.history:
            if not all(type(metrics[name]) is float for name in EPOCH_METRICS):
                raise TypeError("the metrics of an epoch are not numbers")
        vars(self).update(vars(loaded))


class EpochProgress:
    """The training epoch in progress. A checkpoint of it lets a run resume between two steps.

    Attributes:
        order: [n_images] int64, a permutation; None between two epochs.
        losses: [n_steps, 2] float32, of the steps so far, with and without label smoothing.
        n_correct: int64 scalar, over the steps so far.
        step: number of steps so far.
        seconds: time that they took.
        lr: learning rate of the last step.
    """

    def __init__(self, n_images: int, batch_size: int, device: torch.device) -> None:
        self.n_images, self.batch_size, self.device = n_images, batch_size, device
        self.n_steps = math.ceil(n_images / batch_size)
        self.clear()

    def clear(self) -> None:
        """End the epoch."""
        self.order: torch.Tensor | None = None
        self.losses = torch.zeros(self.n_steps, 2, device=self.device)
        self.n_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.step, self.seconds, self.lr = 0, 0.0, 0.0

    def remaining_batches(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Return the indices [B] of each batch to come. A new epoch draws its order."""
        if self.order is None:
            self.order = torch.randperm(self.n_images, generator=generator, device=self.device)
        all_batches: tuple[torch.Tensor, ...] = self.order.split(self.batch_size)
        return all_batches[self.step :]

    def add(self, losses: torch.Tensor, n_correct: torch.Tensor) -> None:
        """Add the results of a step, without waiting for the device."""
        self.losses[self.step] = losses
        self.n_correct += n_correct
        self.step += 1

    @property
    def n_seen(self) -> int:
        """Number of images in the steps so far."""
        return min(self.step * self.batch_size, self.n_images)

    def mean_losses(self) -> tuple[float, float]:
        """Return the mean over the images so far, with and without label smoothing."""
        n_images = torch.full((self.step, 1), self.batch_size, device=self.device)
        n_images[-1] -= self.step * self.batch_size - self.n_seen  # the last batch may be smaller
        smoothed, plain = ((self.losses[: self.step] * n_images).sum(0) / self.n_seen).tolist()
        return smoothed, plain

    def state_dict(self) -> dict[str, Any] | None:
        if self.order is None:
            return None
        sums = {"losses": self.losses, "correct": self.n_correct}
        counts = {"step": self.step, "seconds": self.seconds, "lr": self.lr}
        return {"order": self.order, **sums, **counts}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Raises ValueError if the epoch in `state` has other sizes than this one, or no order."""
        self.clear()
        if state is None:
            return
        if (len(state["order"]), len(state["losses"])) != (self.n_images, self.n_steps):
            raise ValueError(
                "it stopped within an epoch; data.train_size, data.val_size and data.batch_size "
                "cannot change before that epoch ends"
            )
        step, order = state["step"], state["order"]
        if type(step) is not int or not 0 <= step <= self.n_steps:
            raise ValueError(f"step {step} of {self.n_steps}")
        if not torch.equal(order.cpu().sort().values, torch.arange(self.n_images)):
            raise ValueError("the order of the images is not a permutation")
        losses = state["losses"].to(self.device)
        # checkpoints of 0.1 have one loss a step
        self.losses = losses if losses.ndim == 2 else torch.stack([losses, losses], 1)
        self.order = order.to(self.device)
        self.n_correct = state["correct"].to(self.device)
        self.step, self.seconds = step, float(state["seconds"])
        self.lr = float(state.get("lr", 0.0))  # checkpoints of 0.1 have none


class Trainer:
    """Trains on `data.train` and picks the best epoch on `data.val`.

    Args:
        data: on the device.
        step: takes the optimizer steps, on `data.train`.
        directory: where the checkpoints go.
        batch_size: images in an optimizer step.
    """

    def __init__(
        self,
        data: Dataset,
        step: TrainingStep,
        schedule: Schedule,
        settings: TrainerConfig,
        *,
        objective: Objective,
        directory: Path,
        batch_size: int,
    ) -> None:
        self.data, self.step, self.schedule = data, step, schedule
        self.settings, self.objective, self.batch_size = settings, objective, batch_size
        self.device = data.train.images.device
        self.state = State()
        self.progress = EpochProgress(len(data.train), batch_size, self.device)
        self.checkpoint = Checkpoint(directory, step.generator)
        other_data = f"it was trained on other data than {data.name}"
        self.checkpoint.register_constant("data", data.digest, other_data)
        self.checkpoint.register("partial", self.progress)
        self.checkpoint.register("state", self.state)
        self.checkpoint.register("model", step.model)
        self.checkpoint.register("optimizer", step.optimizer)
        self.checkpoint.register("schedule", schedule)
        self.checkpoint.register("scaler", step.scaler)
        self.checkpoint.register("average", step.average)
        self._signals = Deferred()

    def fit(self, tracker: Tracker, trial: Trial) -> State:
        """Train until the last epoch, an early stop or a prune; then load the best weights.

        SIGINT, SIGTERM and SIGUSR2 take effect between two steps, after a checkpoint.

        Raises:
            DivergedError: a loss is not finite.
            UserError: a batch does not fit into memory.
        """
        try:
            with self._signals.installed():
                for epoch, metrics in self._epochs():
                    tracker.log_metrics(metrics, step=epoch)
                    self.state.pruned = False  # only the latest answer counts
                    final = epoch == self.state.epoch and self._is_finished()
                    self.state.pruned = trial.report(epoch, metrics, final=final)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise UserError(f"out of memory with data.batch_size={self.batch_size}") from error
            raise
        best = self.checkpoint.load_best().model
        self.step.model.load_state_dict(best)
        self.step.eval_model.load_state_dict(best)
        return self.state

    def _epochs(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the number and the metrics of each epoch, first of those before a resume."""
        yield from enumerate(list(self.state.history), start=1)
        while not self._is_finished():
            metrics = self._run_epoch()
            self.checkpoint.save()  # first: a tracker that fails must not cost the epoch
            yield self.state.epoch, metrics
            if self._signals.pending:
                log.info("interrupted after epoch %d", self.state.epoch)
            self._signals.obey_pending()

    def evaluate(self, split: Split) -> Evaluation:
        """Evaluate the current weights, or their average if the settings ask for one.

        The precision is float32 whatever the training uses, as in the saved model.
        """
        model = self.step.eval_model.eval()
        size = EVAL_BATCH_SIZE
        if self.device.type != "cpu":  # as many pixels as 2,000 images of MNIST
            size = max(size, 2000 * 28 * 28 // math.prod(self.data.shape))
        with torch.inference_mode():
            logits = torch.cat([model(images) for images, _ in batches(split, size)])
        loss = F.cross_entropy(logits, split.labels)  # logits: [N, n_classes]
        accuracy = (logits.argmax(1) == split.labels).float().mean()
        probabilities: NDArray[np.float32] = logits.softmax(1).cpu().numpy()  # waits for the device
        return Evaluation(loss.item(), accuracy.item(), probabilities)

    def restore(self, directory: Path) -> None:
        """Continue the run in `directory` from its last checkpoint. Raises UserError if it cannot."""
        self.checkpoint.restore(directory)
        if self.state.best_epoch:
            self.checkpoint.save_best(load_best(directory))
        log.info("resuming after epoch %d of %s", self.state.epoch, directory)

    def _is_finished(self) -> bool:
        patience, limit = self.settings.early_stopping.patience, self.settings.max_minutes
        return (
            self.state.epoch >= self.settings.max_epochs
            or self.state.pruned
            or (patience is not None and self.state.bad_epochs >= patience)
            or (limit is not None and self.state.seconds >= 60 * limit)
        )

    def _run_epoch(self) -> dict[str, float]:
        """Train and validate for one epoch; return its metrics."""
        state = self.state
        metrics = self._train_epoch()
        started = time.monotonic()
        val = self.evaluate(self.data.val)
        val_s = time.monotonic() - started
        state.epoch += 1
        state.seconds += val_s
        metrics |= {"val/loss": val.loss, "val/accuracy": val.accuracy}
        metrics["epoch_s"] += val_s
        score = self.objective.score(metrics)
        if not math.isfinite(score):
            metric = self.objective.metric
            raise DivergedError(f"{metric} is {metrics[metric]} after epoch {state.epoch}")
        if improved := score > state.best_score:
            state.best_epoch, state.best_score = state.epoch, score
            self._save_best()
        if score > state.progress_score + self.settings.early_stopping.min_delta:
            state.progress_score, state.bad_epochs = score, 0
        else:
            state.bad_epochs += 1
        self.schedule.after_epoch(score)
        state.history.append(metrics)
        log_epoch(state.epoch, self.settings.max_epochs, metrics, improved)
        return metrics

    def _train_epoch(self) -> dict[str, float]:
        progress, max_epochs = self.progress, self.settings.max_epochs
        limit = math.inf if self.settings.max_minutes is None else 60 * self.settings.max_minutes
        scale = self._image_scale()
        remaining = progress.remaining_batches(self.step.generator)
        self.step.model.train()
        before, started = progress.seconds, time.monotonic()
        with epoch_bar(self.state.epoch + 1, max_epochs, progress.n_images) as advance:
            advance(progress.n_seen)
            for indices in remaining:
                progress.lr = float(self.step.optimizer.param_groups[0]["lr"])
                progress.add(*self.step(indices, scale))
                self.schedule.after_step()
                advance(len(indices))
                if self._signals.pending or progress.step % CHECK_EVERY == 0:
                    progress.seconds = before + time.monotonic() - started
                    if self._signals.pending:
                        self.checkpoint.save()
                        epoch = self.state.epoch + 1
                        log.info("interrupted in epoch %d after step %d", epoch, progress.step)
                        self._signals.obey_pending()
                    if self.device.type == "cpu":  # on a GPU the check would wait for the device
                        self._check_losses()
                    if self.state.seconds + progress.seconds >= limit:
                        log.info("trainer.max_minutes reached in step %d", progress.step)
                        break
        self._check_losses()  # waits for the device
        seconds = before + time.monotonic() - started
        self.state.seconds += seconds
        smoothed_loss, loss = progress.mean_losses()
        metrics = {
            "train/loss": loss,
            "train/accuracy": progress.n_correct.item() / progress.n_seen,
            "lr": progress.lr,
            "epoch_s": seconds,
            "images_per_s": progress.n_seen / seconds,
        }
        if self.settings.label_smoothing:
            metrics["train/smoothed_loss"] = smoothed_loss
        progress.clear()
        return metrics

    def _image_scale(self) -> float:
        """Progressive resizing: grow linearly from `resize_from` to 1 over a share of the epochs."""
        grown = self.state.epoch / (self.settings.resize_epochs * self.settings.max_epochs)
        return self.settings.resize_from + (1 - self.settings.resize_from) * min(1, grown)

    def _check_losses(self) -> None:
        """Raise DivergedError if a loss of the epoch in progress is not finite."""
        losses = self.progress.losses[: self.progress.step, 0]
        not_finite = torch.nonzero(~torch.isfinite(losses))
        if len(not_finite):
            first = int(not_finite[0])
            step = self.state.epoch * self.progress.n_steps + first
            raise DivergedError(
                f"the loss is {losses[first].item()} at step {step} (epoch {self.state.epoch + 1}); "
                "a lower optimizer.lr or trainer.grad_clip may help"
            )

    def _save_best(self) -> None:
        data, weights = self.data, self.step.eval_model.state_dict()
        best = BestModel(weights, self.state.epoch, data.classes, data.shape, data.digest)
        self.checkpoint.save_best(best)
