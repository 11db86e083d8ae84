"""Captures a training step as a CUDA graph and replays it for every later batch.

A step of a small network has a hundred kernels or more, and the GPU waits for their launches. A
captured step is one launch (Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs", pytorch.org).
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

log = logging.getLogger(__name__)

Results = tuple[torch.Tensor, torch.Tensor]
Update = Callable[[torch.Tensor, float], Results]
# Plain steps before the capture: the optimizer creates its state, cuDNN and cuBLAS their workspaces.
WARM_UP = 3


class Graph(Protocol):
    """Interface of CudaGraph. The tests replace it, because they run without a GPU."""

    def warm_up(self, work: Callable[[], Results]) -> Results:
        """Run `work` without capturing it."""

    def capture(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        """Capture `work`. Return its results and a function that computes them again in place."""


class CudaGraph:
    """Warms up and captures on a stream of its own: CUDA cannot capture the default stream."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.stream = generator, torch.cuda.Stream(generator.device)

    def warm_up(self, work: Callable[[], Results]) -> Results:
        # without an argument, current_stream() would be that of the first GPU
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            results = work()
        current.wait_stream(self.stream)
        return results

    def capture(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # without it every replay would draw the same random numbers
        graph.register_generator_state(self.generator)
        with torch.cuda.device(self.stream.device):
            current = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, stream=self.stream):
                    results = work()
            finally:  # torch does not restore the stream when a capture fails
                torch.cuda.set_stream(current)
        return results, graph.replay


class GraphedStep:
    """Runs an update plainly until it has captured it, then replays it.

    A replay has a fixed batch size and scale; other batches run plainly. If the update cannot be
    captured, all batches run plainly.

    Args:
        optimizer: steps inside the update. It must be a fused one, because others read the learning
            rate on the host.
    """

    def __init__(self, optimizer: Optimizer, graph: Graph) -> None:
        self.optimizer, self.graph = optimizer, graph
        self.can_capture = True
        self.optimizer_settings: list[dict[str, Any]] | None = None  # without the learning rates
        self.captured: tuple[int, float] | None = (
            None  # batch size and scale of the captured update
        )
        self.previous: tuple[int, float] | None = None
        self.n_repeats = 0  # consecutive batches with the size and scale of `previous`

    def __call__(self, update: Update, indices: torch.Tensor, scale: float) -> Results:
        """Return the results of `update(indices, scale)`. The next call overwrites them.

        Args:
            update: the same function in every call. It must not wait for the device, and must launch
                the same kernels for each batch of one size and scale.
            indices: [B] int64.
        """
        if self.can_capture:
            self._check_optimizer()
        if not self.can_capture:
            return update(indices, scale)
        batch = len(indices), scale
        if batch == self.captured:
            self.indices.copy_(indices)
            for lr, group in zip(self.lrs, self.optimizer.param_groups, strict=True):
                lr.fill_(group["lr"])
            self.replay()
            return self.results
        self.n_repeats = self.n_repeats + 1 if batch == self.previous else 1
        self.previous = batch
        if self.n_repeats <= WARM_UP:
            return self.graph.warm_up(lambda: update(indices, scale))
        self._capture(update, indices, scale)
        return self(update, indices, scale)

    def _check_optimizer(self) -> None:
        """Give up capturing if a checkpoint or a scheduler has made the optimizer unfit for it."""
        groups = self.optimizer.param_groups
        settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in groups]
        if not all(group.get("fused") for group in groups):
            self.can_capture = False
            log.info("no CUDA graph: this %s has no fused step", type(self.optimizer).__name__)
        elif self.optimizer_settings not in (None, settings):
            self.can_capture = False
            log.info("no CUDA graph: the scheduler changes more than the learning rate")
        self.optimizer_settings = settings

    def _capture(self, update: Update, indices: torch.Tensor, scale: float) -> None:
        """Record the update into a CUDA graph without computing it."""
        groups = self.optimizer.param_groups
        self.indices = indices.clone()
        self.lrs = [torch.zeros((), device=indices.device) for _ in groups]
        original_groups = [dict(group) for group in groups]
        try:
            for group, lr in zip(groups, self.lrs, strict=True):
                group["lr"] = lr
                group["capturable"] = True
            self.results, self.replay = self.graph.capture(lambda: update(self.indices, scale))
            self.captured = len(indices), scale
        except RuntimeError as error:
            self.can_capture = False
            # the error that torch raises at the end of a failed capture hides the first one
            cause = error.__context__ or error
            log.warning("no CUDA graph: %s", str(cause).splitlines()[0])
        finally:
            for group, original in zip(groups, original_groups, strict=True):
                group.clear()
                group.update(original)
