"""The file from which a trained model is rebuilt: its configuration and its weights, and no code."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.common.configs import plain_node
from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.training import checkpoint

FILE = "saved_model.pt"  # MLflow keeps it in the folder extra_files of the model


@dataclass(frozen=True)
class SavedModel:
    """A trained model as plain data: one network, or several whose predictions are averaged.

    A PyTorch program (.pt2) and a pickle can run code when they are loaded. This cannot: `build`
    calls only what a configuration may name, see `common.build`.
    """

    configs: list[dict[str, Any]]  # of each network, the resolved configuration node `model`
    states: list[Mapping[str, torch.Tensor]]  # of each, the state_dict of its models.Classifier
    weights: list[float]  # of each in the average
    shape: tuple[int, int, int]  # (C, H, W) of an image
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raise TypeError if a field has another type. The fields may come from anybody's file."""
        checkpoint.check_images(self.shape, self.classes)
        parts = self.configs, self.states, self.weights
        if not all(isinstance(part, list) for part in parts) or not (
            len(self.configs) == len(self.states) == len(self.weights) > 0
        ):
            raise TypeError("expected a configuration, weights and a share of each network")
        for config, state, weight in zip(*parts, strict=True):
            checkpoint.check_state(state)
            if (
                not isinstance(config, dict)
                or not isinstance(weight, float)
                or not 0 < weight < math.inf
            ):
                raise TypeError("a configuration is not a mapping, or a share is not above 0")

    def build(self) -> nn.Module:
        """Return the model on the CPU in eval mode.

        Raises:
            UserError: a configuration names code that is not trusted, or does not fit the weights.
        """
        pairs = zip(self.configs, self.states, strict=True)
        nets = [self._build_one(config, state) for config, state in pairs]
        return nets[0] if len(nets) == 1 else models.Mixture(nets, self.weights).eval()

    def _build_one(
        self, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]
    ) -> models.Classifier:
        node, n_channels = plain_node({"model": config}, "model", FILE), self.shape[0]
        try:
            net = build(node, in_shape=self.shape, n_classes=len(self.classes))
            model = models.Classifier(net, [0.0] * n_channels, [1.0] * n_channels).eval()
            model.load_state_dict(state)
            # as in training: other kernels would round other bits
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            with torch.inference_mode():
                n_logits = model(torch.zeros(2, *self.shape)).shape[1:]
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = one_line(error)
            raise UserError(f"the weights do not fit the configuration: {reason}") from error
        if n_logits != (len(self.classes),):
            raise UserError(
                f"the model computes {list(n_logits)} logits for {len(self.classes)} classes"
            )
        return model

    def save_in(self, folder: Path) -> None:
        """Write the file into `folder`."""
        checkpoint.save(folder / FILE, vars(self))

    @classmethod
    def load(cls, path: Path) -> "SavedModel":
        """Read a file that `save_in` wrote. Raises UserError if it is missing or damaged."""
        return checkpoint.load_as(cls, path)
