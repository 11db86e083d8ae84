"""Every setting of a training step gives the gradients of a plain backward pass."""

import copy
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_sweep.data.dataset import Split
from mnist_sweep.models import CNN
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.step import TrainingStep

N = 50
IMAGES = torch.randint(
    0, 256, (N, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
)
LABELS = torch.arange(N) % 3


def net(**changes: Any) -> CNN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_shape": (1, 12, 12), "n_classes": 3}
    return CNN(**{**sizes, "stages": [[4, 8], [8]], "head": [16], **changes})


def take_step(
    model: nn.Module,
    n: int = N,
    scale: float = 1.0,
    *,
    images: torch.Tensor = IMAGES,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one step on the first n images with a learning rate of 0, so the gradients stay."""
    step = training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), images, **settings)
    return step(torch.arange(n), scale)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, **settings: Any
) -> TrainingStep:
    return TrainingStep(
        model,
        optimizer,
        Split(images, LABELS, np.arange(N)),
        TrainerConfig(**settings),
        augment=None,
        autocast_dtype=None,
        seed=0,
    )


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def check_gradients(ours: nn.Module, plain: nn.Module, loss: torch.Tensor) -> None:
    """Compare the gradients of `ours` with those of `loss`, which `plain` computed."""
    loss.backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, msg=name)


@pytest.mark.parametrize("size", [1, 2, 7, 25, 49, 50, 64])
def test_micro_batches_add_up_to_the_batch(size: int) -> None:
    ours, plain = net(), net()
    losses, n_correct = take_step(ours, micro_batch_size=size, label_smoothing=0.1)
    logits = plain(IMAGES / 255)
    expected = F.cross_entropy(logits, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(losses[0], expected.detach())
    torch.testing.assert_close(losses[1], F.cross_entropy(logits, LABELS).detach())
    assert n_correct == (logits.argmax(1) == LABELS).sum()
    check_gradients(ours, plain, expected)


def test_micro_batches_have_two_images_for_the_variance_of_batch_norm() -> None:
    for n, size in ((50, 49), (33, 2), (3, 2), (3, 1)):
        model = net(stages=[], logits_batch_norm=True)
        take_step(model, n, micro_batch_size=size)
        assert len(gradients(model)) == len(list(model.parameters()))


def test_skip_easiest_updates_batch_norm_once_and_keeps_two_images() -> None:
    model = net(stages=[], logits_batch_norm=True)
    take_step(model, 3, skip_easiest=0.9)
    assert model[-1].num_batches_tracked == 1
    assert model.training


def test_steps_with_micro_batches_are_those_with_whole_batches() -> None:
    models = [net(), net()]
    for model, size in zip(models, (None, 16), strict=True):
        optimizer = torch.optim.Adam(model.parameters(), eps=1e-3)
        step = training_step(model, optimizer, IMAGES, micro_batch_size=size)
        for _ in range(20):
            step(torch.arange(N))
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_skip_easiest_changes_the_gradient_and_not_the_loss() -> None:
    ours, plain = net(), net()
    losses, n_correct = take_step(ours, skip_easiest=0.7, label_smoothing=0.1)
    logits = plain(IMAGES / 255)
    smoothed, unsmoothed = (
        F.cross_entropy(logits, LABELS, label_smoothing=smoothing, reduction="none")
        for smoothing in (0.1, 0.0)
    )
    expected = torch.stack([smoothed.mean(), unsmoothed.mean()]).detach()
    torch.testing.assert_close(losses, expected)
    assert n_correct == (logits.argmax(1) == LABELS).sum()
    check_gradients(ours, plain, smoothed.sort().values[-15:].mean())


def test_smaller_images_train_a_net_with_linear_layers() -> None:
    model = net()
    sizes: list[torch.Size] = []
    model[0].register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    take_step(model, scale=0.5)
    assert sizes == [(6, 6)]
    assert len(gradients(model)) == len(list(model.parameters()))
    flat = torch.full_like(IMAGES, 90)  # the same values at every size, except at padded edges
    model = net(padding="valid", stages=[[4]], kernel_size=3)
    small, whole = (take_step(copy.deepcopy(model), N, s, images=flat)[0] for s in (0.5, 1.0))
    torch.testing.assert_close(small, whole)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compile_gives_the_same_gradients() -> None:
    ours, plain = net(), net()
    take_step(ours, compile=True)
    check_gradients(ours, plain, F.cross_entropy(plain(IMAGES / 255), LABELS))
