"""The epoch loop on a model and data small enough to know what must happen."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_config import composed
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.config import EarlyStoppingConfig, TrainerConfig
from mnist_sweep.data.dataset import Dataset, Split
from mnist_sweep.models import CNN
from mnist_sweep.training import checkpoint
from mnist_sweep.training.reporting import Reporter, Tracker
from mnist_sweep.training.run import build_schedule
from mnist_sweep.training.trainer import DivergedError, Trainer

N_TRAIN = 60


def split(n: int, seed: int) -> Split:
    """Dark images are 0, bright ones 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 100, (n, 1, 4, 4), generator=generator) + 150 * labels.view(
        -1, 1, 1, 1
    )
    return Split(images.to(torch.uint8), labels, np.arange(n))


DATA = Dataset(
    "toy", ("dark", "bright"), split(N_TRAIN, 1), split(20, 2), split(20, 3), "d", (0.5,), (0.3,)
)


class Journal(Tracker):
    def __init__(self) -> None:
        self.epochs: dict[int, Mapping[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.epochs[step] = metrics


def toy(directory: Path, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    settings = changes.pop("settings", TrainerConfig(max_epochs=3))
    model = changes.pop("model", None) or nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=changes.pop("lr", 0.1))
    schedule = changes.pop("schedule", lambda _: None)(optimizer)
    arguments: dict[str, Any] = {
        "interval": "epoch",
        "batch_size": 16,
        "augment": None,
        "autocast_dtype": None,
        "objective": "val/accuracy",
        "maximize": True,
        "directory": directory,
        "seed": 0,
    }
    return Trainer(model, optimizer, schedule, DATA, settings, **{**arguments, **changes})


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_fit_learns_and_tells_of_every_epoch(tmp_path: Path) -> None:
    journal = Journal()
    state = toy(tmp_path, settings=TrainerConfig(max_epochs=30)).fit(journal, Reporter())
    assert list(journal.epochs) == list(range(1, 31))
    assert journal.epochs[30]["val/accuracy"] == 1.0
    assert journal.epochs[30]["train/loss"] < journal.epochs[1]["train/loss"]
    assert [dict(m) for m in journal.epochs.values()] == state.history


def test_fit_sees_every_training_image_once_an_epoch(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def spy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images.clone())
        return images

    toy(tmp_path, augment=spy, settings=TrainerConfig(max_epochs=1)).fit(Journal(), Reporter())
    assert [len(batch) for batch in seen] == [16, 16, 16, 12]
    found = torch.cat(seen).flatten(1).sum(1).sort().values
    expected = (DATA.train.images / 255).flatten(1).sum(1).sort().values
    assert torch.allclose(found, expected)


def test_fast_path_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    """Five epochs of four steps: channels_last, fused Adam, the pool before its ReLU."""
    images = torch.rand(N_TRAIN, 1, 12, 12, generator=torch.Generator().manual_seed(4))
    train = Split((images * 255).to(torch.uint8), DATA.train.labels, np.arange(N_TRAIN))
    data = Dataset("toy", ("dark", "bright"), train, train, train, "d", (0.5,), (0.3,))
    sizes = {"in_shape": (1, 12, 12), "n_classes": 2, "stages": [[4, 8], [8]], "head": [16]}
    torch.manual_seed(0)
    ours = CNN(**sizes, batch_norm=True, bias=False)  # before a batch norm its gradient is noise
    plain = nn.Sequential(*copy.deepcopy(list(ours)))  # the layers in the order published
    trainer = Trainer(
        ours.to(memory_format=torch.channels_last),
        torch.optim.Adam(ours.parameters(), fused=True, eps=1e-3),
        None,
        data,
        TrainerConfig(max_epochs=5),
        interval="epoch",
        batch_size=16,
        augment=None,
        autocast_dtype=None,
        objective="val/loss",
        maximize=False,
        directory=tmp_path,
        seed=3,
    )
    for epoch in range(5):
        trainer.settings.max_epochs = epoch + 1
        trainer.fit(Journal(), Reporter())
        trainer.restore(tmp_path)  # fit ends with the best weights
    optimizer = torch.optim.Adam(plain.parameters(), eps=1e-3)  # 1e-8 makes steps of noise
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
    """Predicts better until its third epoch, then worse: the logit follows a counter of steps."""

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
def test_early_stopping_waits_and_puts_the_best_weights_back(tmp_path: Path, patience: int) -> None:
    settings = TrainerConfig(max_epochs=20, early_stopping=EarlyStoppingConfig(patience=patience))
    trainer = toy(
        tmp_path, model=Worsening(), settings=settings, objective="val/loss", maximize=False
    )
    state = trainer.fit(Journal(), Reporter())
    assert (state.best_epoch, state.epoch) == (3, 3 + patience)
    assert trainer.model.steps == 12
    assert trainer.evaluate(DATA.val).loss == state.history[2]["val/loss"]


def test_min_delta_counts_small_gains_as_none(tmp_path: Path) -> None:
    stopping = EarlyStoppingConfig(patience=2, min_delta=10.0)
    settings = TrainerConfig(max_epochs=9, early_stopping=stopping)
    state = toy(tmp_path, settings=settings, objective="val/loss", maximize=False).fit(
        Journal(), Reporter()
    )
    assert (state.best_epoch, state.epoch) == (1, 3)


def test_loss_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    class Breaking(nn.Linear):
        n_calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.n_calls += self.training
            return super().forward(images.flatten(1)) * (float("nan") if self.n_calls > 6 else 1)

    with pytest.raises(DivergedError, match=r"nan at step 6 \(epoch 2\)"):
        toy(tmp_path, model=Breaking(16, 2)).fit(Journal(), Reporter())


def test_prune_ends_the_run_after_the_epoch(tmp_path: Path) -> None:
    class Impatient(Reporter):
        def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
            return epoch == 2

    state = toy(tmp_path).fit(Journal(), Impatient())
    assert state.pruned
    assert state.epoch == 2


def test_max_minutes_cuts_the_epoch_short(tmp_path: Path) -> None:
    settings = TrainerConfig(max_epochs=10**6, max_minutes=0.005)
    state = toy(tmp_path, settings=settings).fit(Journal(), Reporter())
    assert 0.3 <= state.seconds < 5


def test_grad_clip_bounds_the_step(tmp_path: Path) -> None:
    settings = TrainerConfig(max_epochs=1, grad_clip=1e-3)
    trainer = toy(tmp_path, settings=settings, batch_size=N_TRAIN, lr=1.0)
    before = weights(trainer)
    trainer.fit(Journal(), Reporter())
    squares = [((a - b) ** 2).sum() for a, b in zip(before, weights(trainer), strict=True)]
    moved = torch.stack(squares).sum().sqrt()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)  # one step of lr 1


def test_label_smoothing_touches_the_training_loss_alone(tmp_path: Path) -> None:
    histories = []
    for smoothing in (0.0, 0.5):
        settings = TrainerConfig(max_epochs=1, label_smoothing=smoothing)
        trainer = toy(tmp_path, settings=settings, lr=0.0)
        histories.append(trainer.fit(Journal(), Reporter()).history[0])
    plain, smooth = histories
    assert plain["val/loss"] == smooth["val/loss"]
    assert plain["train/loss"] != smooth["train/loss"]


def test_schedule_by_epoch_and_by_step(tmp_path: Path) -> None:
    def halving(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)

    for interval, n_halvings in (("epoch", 3), ("step", 12)):
        trainer = toy(tmp_path / interval, schedule=halving, interval=interval)
        trainer.fit(Journal(), Reporter())
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**n_halvings)


def test_plateau_follows_the_objective_with_its_sign(tmp_path: Path) -> None:
    def plateau(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)

    trainer = toy(
        tmp_path,
        model=Worsening(),
        schedule=plateau,
        interval="objective",
        objective="val/loss",
        maximize=False,
        settings=TrainerConfig(max_epochs=4),
    )
    history = trainer.fit(Journal(), Reporter()).history
    assert [epoch["lr"] for epoch in history] == [0.1] * 4
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)  # after the fourth, worse


def test_plateau_takes_a_loss_that_stays_for_no_improvement() -> None:
    cfg = composed("scheduler=plateau", "objective=val/loss", "direction=minimize")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(cfg, optimizer, steps_per_epoch=1)
    for _ in range(5):
        schedule.step(-0.1)  # with its sign turned, as the trainer hands it over
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_restore_on_another_kind_of_device_goes_on_with_other_random_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy(tmp_path / "a").fit(Journal(), Reporter())
    saved = checkpoint.load(tmp_path / "a" / checkpoint.LAST)
    cuda = {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}  # as one of CUDA's
    checkpoint.save(tmp_path / "a" / checkpoint.LAST, saved | cuda)
    resumed = toy(tmp_path / "b", settings=TrainerConfig(max_epochs=4))
    resumed.restore(tmp_path / "a")
    assert "was on cuda: not the same bits" in caplog.text
    assert resumed.fit(Journal(), Reporter()).epoch == 4


def test_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        trainer = toy(tmp_path, seed=seed)
        trainer.fit(Journal(), Reporter())
        results.append(weights(trainer))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_restore_goes_on_bit_by_bit(tmp_path: Path) -> None:
    whole = toy(tmp_path / "whole")
    whole.fit(Journal(), Reporter())
    toy(tmp_path / "part", settings=TrainerConfig(max_epochs=1)).fit(Journal(), Reporter())
    rest = toy(tmp_path / "rest")
    rest.restore(tmp_path / "part")
    journal = Journal()
    rest.fit(journal, Reporter())
    assert equal(weights(whole), weights(rest))
    assert list(journal.epochs) == [1, 2, 3]  # its record is complete


def test_restored_run_is_pruned_where_the_last_answer_says_so(tmp_path: Path) -> None:
    """Of the epochs that are told again the answers may be others than before."""

    class PrunesFirst(Reporter):
        def report(self, epoch: int, metrics: Mapping[str, float]) -> bool:
            return epoch == 1

    toy(tmp_path / "part", settings=TrainerConfig(max_epochs=1)).fit(Journal(), Reporter())
    rest = toy(tmp_path / "rest")
    rest.restore(tmp_path / "part")
    fit = rest.fit(Journal(), PrunesFirst())
    assert (fit.epoch, fit.pruned) == (1, True)


def test_restore_refuses_what_does_not_fit(tmp_path: Path) -> None:
    toy(tmp_path / "run").fit(Journal(), Reporter())
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2))
    with pytest.raises(UserError, match="of another configuration"):
        toy(tmp_path / "new", model=other).restore(tmp_path / "run")
    last = tmp_path / "run" / checkpoint.LAST
    saved = checkpoint.load(last)
    checkpoint.save(last, {**saved, "data": "another digest"})
    with pytest.raises(UserError, match="other data than toy"):
        toy(tmp_path / "new").restore(tmp_path / "run")
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match="no whole checkpoint"):
        toy(tmp_path / "new").restore(tmp_path / "run")


def test_restore_within_an_epoch_refuses_another_batch_size(tmp_path: Path) -> None:
    trainer = toy(tmp_path / "run")
    trainer.fit(Journal(), Reporter())
    last = tmp_path / "run" / checkpoint.LAST
    partial = {
        "order": torch.arange(N_TRAIN),
        "losses": torch.zeros(4),
        "correct": torch.tensor(0),
        "step": 1,
        "seconds": 1.0,
    }
    checkpoint.save(last, {**checkpoint.load(last), "partial": partial})
    toy(tmp_path / "new").restore(tmp_path / "run")
    with pytest.raises(UserError, match="stopped within an epoch"):
        toy(tmp_path / "new", batch_size=8).restore(tmp_path / "run")


def test_evaluate_weighs_every_image_the_same(tmp_path: Path) -> None:
    trainer = toy(tmp_path)
    found = trainer.evaluate(DATA.train)
    logits = trainer.model(DATA.train.images / 255)
    assert found.probabilities == pytest.approx(logits.softmax(1).detach().numpy(), abs=1e-6)
    expected = nn.functional.cross_entropy(logits, DATA.train.labels)
    assert found.loss == pytest.approx(expected.item(), abs=1e-6)
    assert found.accuracy == (logits.argmax(1) == DATA.train.labels).float().mean().item()


class Sizes(nn.Module):
    """Notes the height of the images it is trained on and judged on."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))
        self.seen: dict[bool, list[int]] = {True: [], False: []}  # by self.training

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen[self.training].append(images.shape[2])
        return torch.zeros(len(images), 2) + self.bias


def test_images_grow_over_the_epochs_and_are_judged_whole(tmp_path: Path) -> None:
    model = Sizes()
    settings = TrainerConfig(max_epochs=6, resize_from=0.5, resize_epochs=0.75)
    toy(tmp_path, model=model, settings=settings, batch_size=N_TRAIN).fit(Journal(), Reporter())
    assert model.seen[True] == [2, 2, 3, 3, 4, 4]  # of 0.5, 0.61, 0.72, 0.83, 0.94 and 1 times 4
    assert set(model.seen[False]) == {4}
