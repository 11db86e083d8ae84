"""Each way through a batch leaves the gradients of a plain backward pass."""

import copy
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mnist_sweep.config import TrainerConfig
from mnist_sweep.models import CNN
from mnist_sweep.training.step import Backward

N = 50
IMAGES = torch.randint(
    0, 256, (N, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
)
LABELS = torch.arange(N) % 3


def net(**changes: Any) -> CNN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_shape": (1, 12, 12), "n_classes": 3}
    return CNN(**{**sizes, "stages": [[4, 8], [8]], "head": [16], **changes})


def backward(model: nn.Module, **settings: Any) -> Backward:
    return Backward(
        model,
        TrainerConfig(**settings),
        augment=None,
        autocast_dtype=None,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        generator=torch.Generator().manual_seed(0),
    )


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def check_gradients(ours: nn.Module, plain: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, msg=name)


@pytest.mark.parametrize("size", [1, 2, 7, 25, 49, 50, 64])
def test_micro_batches_add_up_to_the_batch(size: int) -> None:
    ours, plain = net(), net()
    loss, n_right = backward(ours, micro_batch_size=size)(IMAGES, LABELS)
    logits = plain(IMAGES / 255)
    expected = F.cross_entropy(logits, LABELS)
    torch.testing.assert_close(loss, expected.detach())
    assert n_right == (logits.argmax(1) == LABELS).sum()
    check_gradients(ours, plain, expected)


def test_no_micro_batch_is_one_image_which_has_no_variance_for_batch_norm() -> None:
    for n, size in ((50, 49), (33, 2), (3, 2), (3, 1)):
        model = net(stages=[], logits_batch_norm=True)
        backward(model, micro_batch_size=size)(IMAGES[:n], LABELS[:n])
        assert len(gradients(model)) == len(list(model.parameters()))


def test_choosing_the_hardest_leaves_batch_norm_alone_and_two_images_at_least() -> None:
    model = net(stages=[], logits_batch_norm=True)
    backward(model, skip_easiest=0.9)(IMAGES[:3], LABELS[:3])
    assert model[-1].num_batches_tracked == 1
    assert model.training


def test_steps_in_micro_batches_are_those_in_batches() -> None:
    models = [net(), net()]
    for model, size in zip(models, (None, 16), strict=True):
        step = backward(model, micro_batch_size=size)
        optimizer = torch.optim.Adam(model.parameters(), eps=1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            step(IMAGES, LABELS)
            optimizer.step()
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_easiest_are_left_out_of_the_gradient_and_not_of_the_loss() -> None:
    ours, plain = net(), net()
    loss, n_right = backward(ours, skip_easiest=0.7)(IMAGES, LABELS)
    logits = plain(IMAGES / 255)
    losses = F.cross_entropy(logits, LABELS, reduction="none")
    torch.testing.assert_close(loss, losses.mean().detach())
    assert n_right == (logits.argmax(1) == LABELS).sum()
    check_gradients(ours, plain, losses.sort().values[-15:].mean())


def test_smaller_images_train_a_net_with_linear_layers() -> None:
    model = net()
    sizes: list[torch.Size] = []
    model[0].register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    backward(model)(IMAGES, LABELS, 0.5)
    assert sizes == [(6, 6)]
    assert len(gradients(model)) == len(list(model.parameters()))
    flat = torch.full_like(IMAGES, 90)  # has the same values at every size, but at its padded edges
    alike = net(padding="valid", stages=[[4]], kernel_size=3)
    small, whole = backward(copy.deepcopy(alike)), backward(copy.deepcopy(alike))
    torch.testing.assert_close(small(flat, LABELS, 0.5)[0], whole(flat, LABELS)[0])


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_compiled_leaves_the_same_gradients() -> None:
    ours, plain = net(), net()
    backward(ours, compile=True)(IMAGES, LABELS)
    check_gradients(ours, plain, F.cross_entropy(plain(IMAGES / 255), LABELS))
