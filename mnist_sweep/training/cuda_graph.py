"""A training step as one launch: captured as a CUDA graph once, replayed for every batch after that.

A small network on a GPU waits for the launches of its kernels, of which a step has a hundred or more
(Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs", pytorch.org).
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

log = logging.getLogger(__name__)

Results = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, Any], Results]
WARM_UP = 3  # plain steps before: the optimizer makes its state, cuDNN and cuBLAS their workspaces


class Graph(Protocol):
    def warm_up(self, work: Callable[[], Results]) -> Results: ...

    def capture(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """What `work` results in, and what does its work again, into the same memory."""


class CudaGraph:
    """Both on a stream of their own: the default stream cannot be captured."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.stream = generator, torch.cuda.Stream(generator.device)

    def warm_up(self, work: Callable[[], Results]) -> Results:
        current = torch.cuda.current_stream(self.stream.device)  # without it, of the first card
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = work()
        current.wait_stream(self.stream)
        return results

    def capture(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)  # else a replay draws the same numbers again
        with torch.cuda.device(self.stream.device):
            current = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, stream=self.stream):
                    results = work()
            finally:  # which torch leaves out where the capture failed
                torch.cuda.set_stream(current)
        return results, graph.replay


class Graphed:
    """A step, replayed once it has been captured; the results are overwritten by the next call.

    Args:
        optimizer: what the step steps; fused, for others read the learning rate on the host.
    """

    def __init__(self, optimizer: Optimizer, graph: Graph) -> None:
        self.optimizer, self.graph = optimizer, graph
        self.possible = True
        self.settings: Any = None  # of the optimizer, but for the learning rate
        self.last: Any = None
        self.captured: Any = None
        self.n_alike = 0

    def __call__(self, step: Step, indices: torch.Tensor, value: Any) -> Results:
        """The results of step(indices [B], value).

        It is always the same step, has fixed shapes, waits for no device, and does the same whenever B
        and the value are the same, whatever the learning rate.
        """
        if self.possible:
            self._look()
        if not self.possible:
            return step(indices, value)
        kind = len(indices), value
        if kind == self.captured:
            self.indices.copy_(indices)
            self._fill_lr()
            self.replay()
            return self.results
        self.n_alike = self.n_alike + 1 if kind == self.last else 1
        self.last = kind
        if self.n_alike <= WARM_UP:
            return self.graph.warm_up(lambda: step(indices, value))
        self._capture(step, indices, value)
        return self(step, indices, value)

    def _look(self) -> None:
        """At what a checkpoint and a schedule have made of the optimizer."""
        groups = self.optimizer.param_groups
        settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in groups]
        if not all(group.get("fused") for group in groups):
            self.possible = False
            log.info("no CUDA graph: this %s has no fused step", type(self.optimizer).__name__)
        elif self.settings not in (None, settings):
            self.possible = False
            log.info("no CUDA graph: the schedule changes more than the learning rate")
        self.settings = settings

    def _capture(self, step: Step, indices: torch.Tensor, value: Any) -> None:
        """No step: a capture computes nothing."""
        groups = self.optimizer.param_groups
        self.indices = indices.clone()
        self.lr = [torch.zeros((), device=indices.device) for _ in groups]
        plain = [dict(group) for group in groups]
        try:
            for group, lr in zip(groups, self.lr, strict=True):
                group["lr"] = lr
                group["capturable"] = True
            self.results, self.replay = self.graph.capture(lambda: step(self.indices, value))
            self.captured = len(indices), value
        except RuntimeError as error:
            self.possible = False
            # the error that torch raises at the end of a failed capture says little
            why = error.__context__ or error
            log.warning("no CUDA graph: %s", str(why).splitlines()[0])
        finally:
            for group, before in zip(groups, plain, strict=True):
                group.clear()
                group.update(before)

    def _fill_lr(self) -> None:
        for lr, group in zip(self.lr, self.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
