"""Exponential moving average of a model's weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps a copy of a model with the average of its weights over the steps (Polyak & Juditsky 1992).

    The decay grows from 0.2 to `decay`, as min(decay, (1 + step) / (10 + step)), so that the average
    soon forgets the first weights. Buffers, such as the statistics of batch norm, are not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.step = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add the weights of `model`. Call it after every optimizer step; it does not synchronise."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(list(self.model.parameters()), weights, 1 - decay)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.step = state["step"]
