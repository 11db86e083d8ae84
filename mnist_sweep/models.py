"""Networks: images [N, C, H, W] float32 in 0..1 -> logits [N, n_classes]."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mnist_sweep.common.errors import UserError, did_you_mean


class CNN(nn.Sequential):
    """Stages of convolutions, a pool at the end of each, then hidden linear layers and the logits.

    Args:
        in_shape: (C, H, W) of an image.
        n_classes: number of logits.
        stages: for each stage the output channels of its convolutions; none: a plain MLP.
        nf: what the numbers of `stages` are multiples of.
        head: widths of the hidden linear layers.
        padding: "same" keeps the size through a convolution, "valid" pads nothing.
        activation: name of a class of torch.nn.
        activate: after every convolution, or once at the end of each stage.
        batch_norm: after every convolution; with `logits_batch_norm` after the logits.
        bias: of the convolutions and of the logits; a batch norm that follows makes it superfluous.
        pool: "max" halves the size at the end of each stage, "none" keeps it.

    Raises:
        UserError: the sizes leave no pixel, or `activation` is no class of torch.nn.
    """

    def __init__(
        self,
        *,
        in_shape: tuple[int, int, int],
        n_classes: int,
        stages: Sequence[Sequence[int]],
        head: Sequence[int],
        nf: int = 1,
        kernel_size: int = 3,
        padding: str = "same",
        activation: str = "ReLU",
        activate: str = "conv",
        batch_norm: bool = False,
        logits_batch_norm: bool = False,
        bias: bool = True,
        pool: str = "max",
        dropout: float = 0.0,
    ) -> None:
        act = _activation(activation)
        layers: list[nn.Module] = []
        channels, *size = in_shape
        for stage in stages:
            for multiple in stage:
                width = multiple * nf
                layers.append(nn.Conv2d(channels, width, kernel_size, padding=padding, bias=bias))
                channels = width
                if padding == "valid":
                    size = [s - kernel_size + 1 for s in size]
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                if activate == "conv":
                    layers.append(act())
            if activate == "stage":
                layers.append(act())
            if pool == "max":
                layers.append(nn.MaxPool2d(2))
                size = [s // 2 for s in size]
        if min(size) < 1:
            raise UserError(
                f"model.stages={[list(s) for s in stages]} with kernel_size={kernel_size}, padding="
                f"{padding} and pool={pool} leaves nothing of {in_shape[1]}x{in_shape[2]} pixels"
            )
        layers.append(nn.Flatten())
        features = channels * size[0] * size[1]
        for width in head:
            layers += [nn.Linear(features, width), act()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            features = width
        layers.append(nn.Linear(features, n_classes, bias=bias))
        if logits_batch_norm:
            layers.append(nn.BatchNorm1d(n_classes))
        super().__init__(*layers)
        self.features = (size[0], size[1])  # height and width at the Flatten

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """In training a pool comes before the ReLU in front of it: the same function and gradient.

        It leaves ReLU a quarter of the numbers, and `simple` a seventh less to do. Smaller images
        (progressive resizing) are stretched where the linear layers want a fixed number of features.
        """
        layers = list(self)
        if self.training:
            for i in range(1, len(layers)):
                if isinstance(layers[i - 1], nn.ReLU) and isinstance(layers[i], nn.MaxPool2d):
                    layers[i - 1], layers[i] = layers[i], layers[i - 1]
        for layer in layers:
            if isinstance(layer, nn.Flatten) and images.shape[2:] != self.features:
                images = F.adaptive_avg_pool2d(images, self.features)
            images = layer(images)
        return images


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation, each a channel."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


class Classifier(nn.Sequential):
    """A network with its normalisation in front, so that a saved model takes plain pixels in 0..1."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.net = net


class Mixture(nn.Module):
    """Logits whose softmax is the weighted mean of the members' probabilities."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.members, self.weights, strict=True)
        mean = torch.stack([weight * member(images).softmax(1) for member, weight in pairs]).sum(0)
        return mean.clamp_min(1e-12).log()


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def first_layer(model: nn.Module, in_shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
    """Weights of the layer that looks at pixels, [n, C, H, W]; None where there is no such layer."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == in_shape[0]:
            return module.weight.detach().float().cpu().numpy()  # type: ignore[no-any-return]
        if isinstance(module, nn.Linear) and module.in_features == math.prod(in_shape):
            weight = module.weight.detach().float().cpu()
            return weight.reshape(-1, *in_shape).numpy()  # type: ignore[no-any-return]
    return None


def summary(model: nn.Module, in_shape: tuple[int, int, int]) -> list[tuple[str, str, int]]:
    """(layer, output shape without the batch, parameters) for every leaf, in forward order."""
    rows: list[tuple[str, str, int]] = []

    def note(module: nn.Module, _inputs: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output  # of an LSTM its sequence
        shape = "x".join(map(str, first.shape[1:]))
        rows.append((type(module).__name__, shape, n_parameters(module)))

    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    training = model.training
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model.eval()(torch.zeros(1, *in_shape, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return rows


def learns_from_one(model: nn.Module, in_shape: tuple[int, int, int]) -> bool:
    """Whether a batch of one image will do: of a single number, batch norm has no variance."""
    model = copy.deepcopy(model).eval()  # dropout stays off: it would take the run's random numbers
    for module in model.modules():
        module.training = isinstance(module, _BatchNorm)
    try:
        model(torch.zeros(1, *in_shape, device=next(model.parameters()).device))
    except ValueError:
        return False
    return True


def _activation(name: str) -> type[nn.Module]:
    found = getattr(nn, name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    choices = dir(nn.modules.activation)
    raise UserError(
        f"model.activation={name}: no class of torch.nn{did_you_mean(name, choices)}; "
        "ReLU, GELU, SiLU, ELU and Tanh are some"
    )
