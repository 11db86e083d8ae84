"""The epoch loop: train, validate, keep the best weights, stop early, go on after a kill."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.signals import Deferred
from mnist_sweep.data.augment import Augment
from mnist_sweep.data.dataset import Dataset, Split, batches
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training import checkpoint, progress
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.cuda_graph import CudaGraph, Graphed
from mnist_sweep.training.ema import Average
from mnist_sweep.training.step import Backward

log = logging.getLogger(__name__)

EVAL_BATCH_SIZE = 125  # stays in a CPU's cache: twice as fast as 500, and 100 MiB less
LOOK_EVERY = 50  # steps between two looks at the clock, and on the CPU at the loss

# Adam's moments of a weight whose gradient stays 0 decay into denormals, on which a CPU computes
# slowly: +9 % a step of `simple` from step 750 on. At import, for threads of torch inherit it at birth.
torch.set_flush_denormal(True)


class DivergedError(UserError):
    """The loss is not finite any more."""


class Evaluation(NamedTuple):
    loss: float  # mean cross-entropy
    accuracy: float  # in 0..1
    probabilities: NDArray[np.float32]  # [N, n_classes]


@dataclass
class State:
    """How far a run has come; all that a checkpoint holds beside tensors."""

    epoch: int = 0  # finished ones
    best_epoch: int = 0
    best_score: float = -math.inf  # the objective, negated where it is minimised
    bad_epochs: int = 0  # since the best one
    seconds: float = 0.0  # of training and validation
    pruned: bool = False
    history: list[dict[str, float]] = field(default_factory=list)  # one mapping an epoch


@dataclass
class PartialEpoch:
    """An epoch at hand: with the generators' state, all it takes to go on in its middle."""

    order: torch.Tensor  # [n_train] int64, a permutation
    losses: torch.Tensor  # [n_steps] float32
    correct: torch.Tensor  # int64 scalar
    step: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains `model` on `data.train` and chooses the epoch on `data.val`.

    Args:
        schedule: stepped as `interval` says; None: constant learning rate.
        objective: the metric that picks the best epoch, `maximize` or not.
        directory: where the checkpoints go.
        seed: of the order of the batches and the augmentation.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler | ReduceLROnPlateau | None,
        data: Dataset,
        settings: TrainerConfig,
        *,
        interval: str,
        batch_size: int,
        augment: Augment | None,
        autocast_dtype: torch.dtype | None,
        objective: str,
        maximize: bool,
        directory: Path,
        seed: int,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.data = model, optimizer, schedule, data
        self.settings, self.interval, self.batch_size = settings, interval, batch_size
        self.objective, self.sign = objective, 1 if maximize else -1
        self.directory = directory
        self.device = data.train.images.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=autocast_dtype is torch.float16
        )
        self.average = None if settings.ema_decay is None else Average(model, settings.ema_decay)
        self.judged = model if self.average is None else self.average.model  # for validation
        self.backward = Backward(
            model,
            settings,
            augment=augment,
            autocast_dtype=autocast_dtype,
            scaler=self.scaler,
            generator=self.generator,
        )
        self.graphed: Graphed | None = None
        if settings.cuda_graphs and self.scaler.is_enabled():
            log.info("no CUDA graph: whether a step of fp16 counts is read on the host")
        elif settings.cuda_graphs and self.device.type == "cuda":
            self.graphed = Graphed(optimizer, CudaGraph(self.generator))
        self.state = State()
        self._partial: PartialEpoch | None = None
        self._signals = Deferred()

    def fit(self, tracker: Tracker, trial: Trial) -> State:
        """Train to the last epoch, an early stop or a prune, then put the best weights back.

        SIGINT and SIGTERM are obeyed between two steps, with a checkpoint of the very step.

        Raises:
            DivergedError: a loss is not finite.
            UserError: the memory does not hold a batch.
        """
        for epoch, metrics in enumerate(self.state.history, start=1):  # of a resumed run
            tracker.log_metrics(metrics, step=epoch)
            self.state.pruned = trial.report(epoch, metrics)
        try:
            with self._signals.installed():
                while not self._finished():
                    metrics = self._epoch()
                    self._save_last()  # first: a store that is away must not cost the epoch
                    tracker.log_metrics(metrics, step=self.state.epoch)
                    self.state.pruned = trial.report(self.state.epoch, metrics)
                    self._signals.obey_pending()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise UserError(f"out of memory with data.batch_size={self.batch_size}") from error
            raise
        best = checkpoint.load(self.directory / checkpoint.BEST)["model"]
        self.model.load_state_dict(best)
        self.judged.load_state_dict(best)
        return self.state

    def evaluate(self, split: Split) -> Evaluation:
        """Loss and probabilities of the model as it stands, of its averaged weights where it has them.

        In float32 whatever the training is in: the figures are those of the model that is saved.
        """
        self.judged.eval()
        logits = []
        size = EVAL_BATCH_SIZE
        if self.device.type != "cpu":  # as much as 2,000 images of MNIST
            size = max(size, 2000 * 28 * 28 // math.prod(self.data.shape))
        with torch.inference_mode():
            for images, _ in batches(split, size):
                logits.append(self.judged(images))
        joined = torch.cat(logits)  # [N, n_classes]
        loss = F.cross_entropy(joined, split.labels)
        accuracy = (joined.argmax(1) == split.labels).float().mean()
        probabilities: NDArray[np.float32] = joined.softmax(1).cpu().numpy()  # waits for the device
        return Evaluation(loss.item(), accuracy.item(), probabilities)

    def _finished(self) -> bool:
        patience, limit = self.settings.early_stopping.patience, self.settings.max_minutes
        return (
            self.state.epoch >= self.settings.max_epochs
            or self.state.pruned
            or (patience is not None and self.state.bad_epochs >= patience)
            or (limit is not None and self.state.seconds >= 60 * limit)
        )

    def _epoch(self) -> dict[str, float]:
        """One epoch of training, one validation; the best weights so far are kept."""
        state = self.state
        metrics = self._train_epoch()
        started = time.monotonic()
        val = self.evaluate(self.data.val)
        val_s = time.monotonic() - started
        state.epoch += 1
        state.seconds += val_s
        metrics |= {"val/loss": val.loss, "val/accuracy": val.accuracy}
        metrics["epoch_s"] += val_s
        score = self.sign * metrics[self.objective]
        if not math.isfinite(score):
            raise DivergedError(f"{self.objective} is {abs(score)} after epoch {state.epoch}")
        if improved := score > state.best_score + self.settings.early_stopping.min_delta:
            state.best_epoch, state.best_score, state.bad_epochs = state.epoch, score, 0
            weights = {"model": self.judged.state_dict(), "epoch": state.epoch}
            data = self.data
            about = {"classes": data.classes, "shape": data.shape, "data": data.digest}
            checkpoint.save(self.directory / checkpoint.BEST, {**weights, **about})
        else:
            state.bad_epochs += 1
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(score)
        elif self.schedule is not None and self.interval == "epoch":
            self.schedule.step()
        state.history.append(metrics)
        progress.epoch_line(state.epoch, self.settings.max_epochs, metrics, improved)
        return metrics

    def _train_epoch(self) -> dict[str, float]:
        n = len(self.data.train)
        n_steps = math.ceil(n / self.batch_size)
        partial = self._partial or PartialEpoch(
            order=torch.randperm(n, generator=self.generator, device=self.device),
            losses=torch.zeros(n_steps, device=self.device),
            correct=torch.zeros((), dtype=torch.int64, device=self.device),
        )
        self._partial = partial
        self.model.train()
        scale = self._image_scale()
        before, started = partial.seconds, time.monotonic()
        limit = self.settings.max_minutes
        with progress.epoch_bar(self.state.epoch + 1, self.settings.max_epochs, n) as advance:
            advance(partial.step * self.batch_size)
            for indices in partial.order.split(self.batch_size)[partial.step :]:
                partial.losses[partial.step] = self._step(indices, scale, partial.correct)
                partial.step += 1
                advance(len(indices))
                if self._signals.pending or partial.step % LOOK_EVERY == 0:
                    partial.seconds = before + time.monotonic() - started
                    if self._signals.pending:
                        self._save_last()
                        self._signals.obey_pending()
                    if self.device.type == "cpu":  # elsewhere a look would wait for the device
                        self._check_finite(partial)
                    if limit is not None and self.state.seconds + partial.seconds >= 60 * limit:
                        log.info("trainer.max_minutes=%g reached in step %d", limit, partial.step)
                        break
        self._check_finite(partial)  # waits for the device
        seconds = before + time.monotonic() - started
        n_seen = min(partial.step * self.batch_size, n)
        self.state.seconds += seconds
        self._partial = None
        return {
            "train/loss": partial.losses[: partial.step].mean().item(),
            "train/accuracy": partial.correct.item() / n_seen,
            "lr": float(self.optimizer.param_groups[0]["lr"]),  # of the next step
            "epoch_s": seconds,
            "images_per_s": n_seen / seconds,
        }

    def _image_scale(self) -> float:
        """Progressive resizing: from `resize_from` in the first epoch evenly up to 1 after its share."""
        grown = self.state.epoch / (self.settings.resize_epochs * self.settings.max_epochs)
        return self.settings.resize_from + (1 - self.settings.resize_from) * min(1, grown)

    def _step(self, indices: torch.Tensor, scale: float, correct: torch.Tensor) -> torch.Tensor:
        """One step on the images at `indices` [B]: the loss, and `correct` counted up, both unread."""
        if self.graphed is None:
            loss, n_right = self._update(indices, scale)
        else:
            loss, n_right = self.graphed(self._update, indices, scale)
        if self.average is not None:
            self.average.update(self.model)
        if self.schedule is not None and self.interval == "step":
            self.schedule.step()  # type: ignore[call-arg]  # never ReduceLROnPlateau
        correct += n_right
        return loss

    def _update(self, indices: torch.Tensor, scale: float) -> tuple[torch.Tensor, ...]:
        """The part of a step that a CUDA graph can hold: the loss and the number of right answers."""
        self.optimizer.zero_grad(set_to_none=True)
        train = self.data.train
        loss, n_right = self.backward(train.images[indices], train.labels[indices], scale)
        if self.settings.grad_clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, n_right

    def _check_finite(self, partial: PartialEpoch) -> None:
        bad = torch.nonzero(~torch.isfinite(partial.losses[: partial.step]))
        if len(bad):
            step = self.state.epoch * len(partial.losses) + int(bad[0])
            raise DivergedError(
                f"the loss is {partial.losses[bad[0]].item()} at step {step} (epoch "
                f"{self.state.epoch + 1}); a lower optimizer.lr or trainer.grad_clip may help"
            )

    def _save_last(self) -> None:
        """All of it, from which `restore` goes on bit by bit."""
        partial = None if self._partial is None else vars(self._partial)
        state = {
            "state": asdict(self.state),
            "data": self.data.digest,
            "device": self.device.type,
            "partial": partial,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "generator": self.generator.get_state(),
            "rng": checkpoint.rng_state(self.device),
        }
        checkpoint.save(self.directory / checkpoint.LAST, state)

    def _check_data(self, saved: Mapping[str, Any], directory: Path) -> None:
        if saved.get("data") != self.data.digest:
            raise UserError(f"{directory} was trained on other data than {self.data.name}")
        n, partial = len(self.data.train), saved["partial"]
        sizes = n, math.ceil(n / self.batch_size)
        if partial is not None and (len(partial["order"]), len(partial["losses"])) != sizes:
            raise UserError(
                f"the run in {directory} stopped within an epoch; its data.train_size, data.val_size "
                "and data.batch_size cannot change before the end of it"
            )

    def restore(self, directory: Path) -> None:
        """Go on where the run in `directory` stopped. Raises UserError where it does not fit."""
        saved = checkpoint.load(directory / checkpoint.LAST)
        self._check_data(saved, directory)
        try:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(saved["schedule"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"the checkpoint in {directory} is of another configuration: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if saved["scaler"]:  # else its precision needed none
            self.scaler.load_state_dict(saved["scaler"])
        if saved.get("device", self.device.type) == self.device.type:
            self.generator.set_state(saved["generator"])
        else:  # each kind of device has random numbers of its own
            log.warning("WARNING: %s was on %s: not the same bits", directory, saved["device"])
        checkpoint.set_rng_state(saved["rng"], self.device)
        self.state = State(**saved["state"])
        if saved["partial"] is not None:
            on_device: Any = {
                k: v.to(self.device) if isinstance(v, torch.Tensor) else v
                for k, v in saved["partial"].items()
            }
            self._partial = PartialEpoch(**on_device)
        if self.state.best_epoch:
            best = checkpoint.load(directory / checkpoint.BEST)
            checkpoint.save(self.directory / checkpoint.BEST, best)
        log.info("going on after epoch %d of %s", self.state.epoch, directory)
