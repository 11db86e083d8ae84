"""Replayed steps have the results of plain steps.

The tests run without a GPU. A recording of torch's operations replaces the CUDA graph. It shares the
properties of a capture that matter: what Python computes is constant, results are overwritten in
place, and the host reads no tensor.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_sweep.data.dataset import load_dataset
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training.cuda_graph import WARM_UP, GraphedStep, Results
from mnist_sweep.training.run import build_model, build_trainer
from mnist_sweep.training.step import TrainingStep
from mnist_sweep.training.trainer import Trainer
from tests.helpers.configs import composed


class Recording(TorchDispatchMode):
    """Replaces CudaGraph. Unlike a capture it computes, so it restores the state at its end."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__()
        self.step, self.n_captures, self.n_replays = step, 0, 0
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def warm_up(self, work: Callable[[], Results]) -> Results:
        return work()

    def capture(self, work: Callable[[], Results]) -> tuple[Results, Callable[[], None]]:
        self.n_captures += 1
        self.calls = []
        state = [
            *self.step.model.state_dict().values(),
            *tree_leaves(self.step.optimizer.state_dict()["state"]),
        ]
        before = [value.clone() for value in state if isinstance(value, torch.Tensor)]
        rng = torch.get_rng_state(), self.step.generator.get_state()
        with self:
            results = work()
        tensors = [value for value in state if isinstance(value, torch.Tensor)]
        for value, original in zip(tensors, before, strict=True):
            value.copy_(original)
        torch.set_rng_state(rng[0])
        self.step.generator.set_state(rng[1])
        return results, self.replay

    @torch.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        for func, args, kwargs, results in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and not share_memory(old, new):
                    old.copy_(new)


def share_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def plain_trainer(folder: Path, *overrides: str) -> Trainer:
    sizes = ["data=mnist5k", "data.train_size=165", "data.val_size=50", "data.batch_size=8"]
    cfg = composed(*sizes, "trainer.max_epochs=1", "trainer.precision=fp32", *overrides)
    torch.manual_seed(0)
    data = load_dataset(cfg.data)
    return build_trainer(cfg, build_model(cfg.model, data), data, folder)


def graphed_trainer(folder: Path, *overrides: str) -> tuple[Trainer, Recording]:
    trainer = plain_trainer(folder, *overrides)
    recording = Recording(trainer.step)
    trainer.step.graphed = GraphedStep(trainer.step.optimizer, recording)
    return trainer, recording


def fit(*trainers: Trainer) -> list[dict[str, torch.Tensor]]:
    """Fit each trainer with the same random numbers; return their weights."""
    weights = []
    for trainer in trainers:
        torch.manual_seed(1)  # for dropout
        trainer.fit(Tracker(), Trial())
        weights.append(trainer.step.model.state_dict())
    return weights


CONF = Path(__file__).parent.parent.parent / "conf"


@pytest.mark.parametrize("model", sorted(path.stem for path in CONF.glob("model/*.yaml")))
def test_replayed_steps_have_the_results_of_a_plain_loop(model: str, tmp_path: Path) -> None:
    overrides = f"model={model}", f"optimizer.lr={2**-10}"  # the same number in float32
    trainer, recording = graphed_trainer(tmp_path / "graphed", *overrides)
    replayed, plain = fit(trainer, plain_trainer(tmp_path / "plain", *overrides))
    n_full_batches = 20  # the last batch is smaller
    assert (recording.n_captures, recording.n_replays) == (1, n_full_batches - WARM_UP)
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.augment=affine", "model.dropout=0.3"],
        ["scheduler=cosine", "optimizer=adamw"],
        ["scheduler=onecycle", "+scheduler.factory.cycle_momentum=false", "optimizer=sgd"],
        ["trainer.skip_easiest=0.5", "trainer.grad_clip=0.1", "trainer.ema_decay=0.9"],
        ["trainer.micro_batch_size=4", "trainer.precision=bf16"],
        ["trainer.resize_from=0.5", "trainer.max_epochs=4", "trainer.resize_epochs=1"],
    ],
)
def test_replays_follow_what_changes_from_step_to_step(
    overrides: list[str], tmp_path: Path
) -> None:
    trainer, recording = graphed_trainer(tmp_path / "graphed", *overrides)
    replayed, plain = fit(trainer, plain_trainer(tmp_path / "plain", *overrides))
    epochs = trainer.settings.max_epochs
    assert recording.n_captures == (4 if "trainer.resize_from=0.5" in overrides else 1)
    assert recording.n_replays == 20 * trainer.settings.max_epochs - WARM_UP * recording.n_captures
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert epochs == len(trainer.state.history)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["scheduler=onecycle"], "changes more than the learning rate"),
        (["optimizer._target_=torch.optim.Adamax"], "no fused step"),
    ],
)
def test_unfit_optimizer_is_not_captured_and_the_log_says_why(
    overrides: list[str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        trainer, recording = graphed_trainer(tmp_path / "graphed", *overrides)
        replayed, plain = fit(trainer, plain_trainer(tmp_path / "plain", *overrides))
    assert recording.n_captures == 0
    assert [reason in message for message in caplog.messages].count(True) == 1
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, msg=name)


def test_step_that_reads_a_tensor_on_the_host_is_not_captured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, recording = graphed_trainer(tmp_path)
    net = trainer.step.model.net
    net.register_forward_pre_hook(lambda _module, images: images[0].sum().item() and None)
    fit(trainer)
    assert recording.n_captures == 1
    assert recording.n_replays == 0
    assert "no CUDA graph: operation not permitted" in caplog.text
    assert all(isinstance(group["lr"], float) for group in trainer.step.optimizer.param_groups)


def test_graph_uses_the_optimizer_state_of_a_checkpoint(tmp_path: Path) -> None:
    fit(plain_trainer(tmp_path / "first"))
    resumed = []
    captured, recording = graphed_trainer(tmp_path / "graphed")
    for trainer in (captured, plain_trainer(tmp_path / "plain")):
        trainer.restore(tmp_path / "first")
        trainer.settings.max_epochs = 2
        resumed += fit(trainer)
    for name, value in resumed[1].items():
        torch.testing.assert_close(resumed[0][name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert recording.n_replays == 20 - WARM_UP
