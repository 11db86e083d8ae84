"""Trains a tiny model on tiny data, where the result of each setting is known."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_sweep.data.dataset import Dataset, Split
from mnist_sweep.models import CNN
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.training.config import EarlyStoppingConfig, TrainerConfig
from mnist_sweep.training.trainer import DivergedError, Trainer
from tests.helpers.toy import DATA, LOSS, N_TRAIN, MemoryTracker, toy_trainer


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.step.model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_fit_learns_and_records_every_epoch(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    state = toy_trainer(tmp_path, settings=TrainerConfig(max_epochs=30)).fit(tracker, Trial())
    assert list(tracker.epochs) == list(range(1, 31))
    assert tracker.epochs[30]["val/accuracy"] == 1.0
    assert tracker.epochs[30]["train/loss"] < tracker.epochs[1]["train/loss"]
    assert [dict(m) for m in tracker.epochs.values()] == state.history


def test_fit_sees_every_training_image_once_an_epoch(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def spy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images.clone())
        return images

    toy_trainer(tmp_path, augment=spy, settings=TrainerConfig(max_epochs=1)).fit(
        MemoryTracker(), Trial()
    )
    assert [len(batch) for batch in seen] == [16, 16, 16, 12]
    sums = torch.cat(seen).flatten(1).sum(1).sort().values
    expected = (DATA.train.images / 255).flatten(1).sum(1).sort().values
    assert torch.allclose(sums, expected)


def test_fit_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    """Five epochs of four steps with channels_last, fused Adam, and each pool before its ReLU."""
    images = torch.rand(N_TRAIN, 1, 12, 12, generator=torch.Generator().manual_seed(4))
    train = Split((images * 255).to(torch.uint8), DATA.train.labels, np.arange(N_TRAIN))
    data = Dataset("toy", ("dark", "bright"), train, train, train, "d", (0.5,), (0.3,))
    sizes = {"in_shape": (1, 12, 12), "n_classes": 2, "stages": [[4, 8], [8]], "head": [16]}
    torch.manual_seed(0)
    # bias=False: in front of a batch norm the gradient of a bias is noise
    ours = CNN(**sizes, batch_norm=True, bias=False)
    plain = nn.Sequential(*copy.deepcopy(list(ours)))  # the layers in their original order
    trainer = toy_trainer(
        tmp_path,
        TrainerConfig(max_epochs=5),
        model=ours.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        optimizer=partial(torch.optim.Adam, fused=True, eps=1e-3),
        objective=LOSS,
        data=data,
        seed=3,
    )
    for epoch in range(5):
        trainer.settings.max_epochs = epoch + 1
        trainer.fit(MemoryTracker(), Trial())
        trainer.restore(tmp_path)  # because fit ends with the best weights
    optimizer = torch.optim.Adam(plain.parameters(), eps=1e-3)  # with 1e-8 noise would make steps
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        for indices in torch.randperm(N_TRAIN, generator=generator).split(16):
            loss = nn.functional.cross_entropy(
                plain(train.images[indices] / 255), train.labels[indices]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, expected in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], expected, atol=1e-4), name


class Worsening(nn.Module):
    """Gets better until its third epoch, then worse: a counter of steps scales its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        epoch = self.steps // 4  # four steps an epoch
        bright = images.mean((1, 2, 3)) * 2 - 1
        scale = torch.where(epoch <= 3, epoch, 6 - epoch) + 0 * self.weight
        return torch.stack([-bright, bright], 1) * scale


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_waits_and_loads_the_best_weights(tmp_path: Path, patience: int) -> None:
    settings = TrainerConfig(max_epochs=20, early_stopping=EarlyStoppingConfig(patience=patience))
    trainer = toy_trainer(tmp_path, settings, model=Worsening(), objective=LOSS)
    state = trainer.fit(MemoryTracker(), Trial())
    assert (state.best_epoch, state.epoch) == (3, 3 + patience)
    assert trainer.step.model.steps == 12
    assert trainer.evaluate(DATA.val).loss == state.history[2]["val/loss"]


def test_min_delta_ignores_small_gains(tmp_path: Path) -> None:
    stopping = EarlyStoppingConfig(patience=2, min_delta=10.0)
    settings = TrainerConfig(max_epochs=9, early_stopping=stopping)
    trainer = toy_trainer(tmp_path, settings, model=Worsening(), objective=LOSS)
    state = trainer.fit(MemoryTracker(), Trial())
    assert state.epoch == 3, "two epochs gained less than min_delta"
    assert state.best_epoch == 3, "the best epoch is the best, however small its gain"


def test_logged_learning_rate_is_that_of_the_last_step(tmp_path: Path) -> None:
    tracker = MemoryTracker()
    halving = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    toy_trainer(tmp_path, TrainerConfig(max_epochs=3), scheduler=halving).fit(tracker, Trial())
    assert [metrics["lr"] for metrics in tracker.epochs.values()] == [0.1, 0.05, 0.025]


def test_last_epoch_is_reported_as_final(tmp_path: Path) -> None:
    class Reports(Trial):
        def __init__(self) -> None:
            self.finals: list[bool] = []

        def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
            self.finals.append(final)
            return False

    trial = Reports()
    toy_trainer(tmp_path, TrainerConfig(max_epochs=3)).fit(MemoryTracker(), trial)
    assert trial.finals == [False, False, True]


def test_error_of_a_diverged_run_names_the_step(tmp_path: Path) -> None:
    class Breaking(nn.Linear):
        n_calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.n_calls += self.training
            return super().forward(images.flatten(1)) * (float("nan") if self.n_calls > 6 else 1)

    with pytest.raises(DivergedError, match=r"nan at step 6 \(epoch 2\)"):
        toy_trainer(tmp_path, model=Breaking(16, 2)).fit(MemoryTracker(), Trial())


def test_prune_ends_the_run_after_the_epoch(tmp_path: Path) -> None:
    class PrunesSecond(Trial):
        def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
            return step == 2

    state = toy_trainer(tmp_path).fit(MemoryTracker(), PrunesSecond())
    assert state.pruned
    assert state.epoch == 2


def test_max_minutes_cuts_the_epoch_short(tmp_path: Path) -> None:
    settings = TrainerConfig(max_epochs=10**6, max_minutes=0.005)
    state = toy_trainer(tmp_path, settings=settings).fit(MemoryTracker(), Trial())
    assert 0.3 <= state.seconds < 5


def test_grad_clip_bounds_the_step(tmp_path: Path) -> None:
    settings = TrainerConfig(max_epochs=1, grad_clip=1e-3)
    trainer = toy_trainer(
        tmp_path, settings=settings, batch_size=N_TRAIN, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    before = weights(trainer)
    trainer.fit(MemoryTracker(), Trial())
    squares = [((a - b) ** 2).sum() for a, b in zip(before, weights(trainer), strict=True)]
    moved = torch.stack(squares).sum().sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)  # one step of lr 1


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_train_loss_is_the_mean_cross_entropy_of_the_images(
    tmp_path: Path, smoothing: float
) -> None:
    settings = TrainerConfig(max_epochs=1, label_smoothing=smoothing)
    fixed = partial(torch.optim.SGD, lr=0.0)
    trainer = toy_trainer(tmp_path, settings=settings, optimizer=fixed)  # its last batch is smaller
    metrics = trainer.fit(MemoryTracker(), Trial()).history[0]
    assert metrics["train/loss"] == pytest.approx(trainer.evaluate(DATA.train).loss, rel=1e-5)
    assert ("train/smoothed_loss" in metrics) == (smoothing > 0)
    if smoothing:
        logits = trainer.step.model(DATA.train.images / 255)
        expected = F.cross_entropy(logits, DATA.train.labels, label_smoothing=smoothing).item()
        assert metrics["train/smoothed_loss"] == pytest.approx(expected, rel=1e-5)


def test_schedule_steps_with_the_epochs_or_with_the_steps(tmp_path: Path) -> None:
    def halving(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    for interval, n_halvings in (("epoch", 3), ("step", 12)):
        trainer = toy_trainer(tmp_path / interval, scheduler=halving, interval=interval)
        trainer.fit(MemoryTracker(), Trial())
        assert trainer.step.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**n_halvings)


def test_plateau_steps_with_the_score_of_the_objective(tmp_path: Path) -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)

    trainer = toy_trainer(
        tmp_path,
        model=Worsening(),
        scheduler=plateau,
        interval="objective",
        objective=LOSS,
        settings=TrainerConfig(max_epochs=4),
    )
    history = trainer.fit(MemoryTracker(), Trial()).history
    assert [epoch["lr"] for epoch in history] == [0.1] * 4
    assert trainer.step.optimizer.param_groups[0]["lr"] == pytest.approx(
        0.01
    )  # after the fourth, worse


def test_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        trainer = toy_trainer(tmp_path, seed=seed)
        trainer.fit(MemoryTracker(), Trial())
        results.append(weights(trainer))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_restored_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole = toy_trainer(tmp_path / "whole")
    whole.fit(MemoryTracker(), Trial())
    toy_trainer(tmp_path / "part", settings=TrainerConfig(max_epochs=1)).fit(
        MemoryTracker(), Trial()
    )
    rest = toy_trainer(tmp_path / "rest")
    rest.restore(tmp_path / "part")
    tracker = MemoryTracker()
    rest.fit(tracker, Trial())
    assert equal(weights(whole), weights(rest))
    assert list(tracker.epochs) == [1, 2, 3]  # the record is complete


def test_restored_run_that_is_pruned_again_stops(tmp_path: Path) -> None:
    """An earlier answer of the resumed trial does not make its last epoch a final one."""

    class PrunesUnlessFinal(Trial):
        def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
            return not final

    toy_trainer(tmp_path / "part", TrainerConfig(max_epochs=2)).fit(MemoryTracker(), Trial())
    rest = toy_trainer(tmp_path / "rest", TrainerConfig(max_epochs=5))
    rest.restore(tmp_path / "part")
    state = rest.fit(MemoryTracker(), PrunesUnlessFinal())
    assert (state.epoch, state.pruned) == (2, True)


def test_restored_run_is_pruned_if_the_last_answer_says_so(tmp_path: Path) -> None:
    """A resumed run reports its finished epochs again, and the answers may differ."""

    class PrunesFirst(Trial):
        def report(self, step: int, metrics: Mapping[str, float], *, final: bool = False) -> bool:
            return step == 1

    toy_trainer(tmp_path / "part", settings=TrainerConfig(max_epochs=1)).fit(
        MemoryTracker(), Trial()
    )
    rest = toy_trainer(tmp_path / "rest")
    rest.restore(tmp_path / "part")
    fit = rest.fit(MemoryTracker(), PrunesFirst())
    assert (fit.epoch, fit.pruned) == (1, True)


def test_evaluate_gives_every_image_the_same_weight(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    evaluation = trainer.evaluate(DATA.train)
    logits = trainer.step.model(DATA.train.images / 255)
    assert evaluation.probabilities == pytest.approx(logits.softmax(1).detach().numpy(), abs=1e-6)
    expected = nn.functional.cross_entropy(logits, DATA.train.labels)
    assert evaluation.loss == pytest.approx(expected.item(), abs=1e-6)
    assert evaluation.accuracy == (logits.argmax(1) == DATA.train.labels).float().mean().item()


class Sizes(nn.Module):
    """Records the heights of the images that it is trained and evaluated on."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.seen: dict[bool, list[int]] = {True: [], False: []}  # by self.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen[self.training].append(images.shape[2])
        return torch.zeros(len(images), 2) + self.bias


def test_images_grow_over_the_epochs_and_are_evaluated_in_full_size(tmp_path: Path) -> None:
    model = Sizes()
    settings = TrainerConfig(max_epochs=6, resize_from=0.5, resize_epochs=0.75)
    toy_trainer(tmp_path, model=model, settings=settings, batch_size=N_TRAIN).fit(
        MemoryTracker(), Trial()
    )
    assert model.seen[True] == [2, 2, 3, 3, 4, 4]  # 0.5, 0.61, 0.72, 0.83, 0.94 and 1 times 4
    assert set(model.seen[False]) == {4}
