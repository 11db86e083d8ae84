"""Steps that are replayed are those that are computed anew.

No GPU here: in a CUDA graph's place stands a recording of torch's operations, with what matters of a
capture. All that Python computes is frozen in it, memory is used again, and the host reads no tensor.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import compose
from mnist_sweep.data.dataset import load_dataset
from mnist_sweep.training.cuda_graph import WARM_UP, Graphed
from mnist_sweep.training.reporting import Reporter, Tracker
from mnist_sweep.training.run import build_model, build_trainer
from mnist_sweep.training.trainer import Trainer

Results = tuple[torch.Tensor, ...]


class Recording(TorchDispatchMode):
    """Stands in for CudaGraph. Unlike a capture it computes, so it puts the state back at its end."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer, self.n_captures, self.n_replays = trainer, 0, 0
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
            *self.trainer.model.state_dict().values(),
            *tree_leaves(self.trainer.optimizer.state_dict()["state"]),
        ]
        before = [value.clone() for value in state if isinstance(value, torch.Tensor)]
        rng = torch.get_rng_state(), self.trainer.generator.get_state()
        with self:
            results = work()
        tensors = [value for value in state if isinstance(value, torch.Tensor)]
        for value, kept in zip(tensors, before, strict=True):
            value.copy_(kept)
        torch.set_rng_state(rng[0])
        self.trainer.generator.set_state(rng[1])
        return results, self.replay

    @torch.no_grad()
    def replay(self) -> None:
        self.n_replays += 1
        for func, args, kwargs, recorded in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old is not new and not shares(old, new):
                    old.copy_(new)


def shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def trainer(folder: Path, *overrides: str) -> Trainer:
    sizes = ["data=mnist5k", "data.train_size=165", "data.val_size=50", "data.batch_size=8"]
    cfg = compose([*sizes, "trainer.max_epochs=1", "trainer.precision=fp32", *overrides])
    torch.manual_seed(0)
    data = load_dataset(cfg.data)
    model = build_model(cfg.model, data).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return build_trainer(cfg, model, data, folder)


def graphed(folder: Path, *overrides: str) -> tuple[Trainer, Recording]:
    ours = trainer(folder, *overrides)
    recording = Recording(ours)
    ours.graphed = Graphed(ours.optimizer, recording)
    return ours, recording


def fit(*trainers: Trainer) -> list[dict[str, torch.Tensor]]:
    weights = []
    for each in trainers:
        torch.manual_seed(1)  # of dropout
        each.fit(Tracker(), Reporter())
        weights.append(each.model.state_dict())
    return weights


CONF = Path(__file__).parent.parent.parent / "conf"


@pytest.mark.parametrize("model", sorted(path.stem for path in CONF.glob("model/*.yaml")))
def test_replayed_steps_are_those_of_a_plain_loop(model: str, tmp_path: Path) -> None:
    overrides = f"model={model}", f"optimizer.lr={2**-10}"  # the same number in float32
    ours, recording = graphed(tmp_path / "graphed", *overrides)
    replayed, plain = fit(ours, trainer(tmp_path / "plain", *overrides))
    assert (recording.n_captures, recording.n_replays) == (
        1,
        20 - WARM_UP,
    )  # the last batch is smaller
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
def test_what_changes_from_step_to_step_changes_in_replays(
    overrides: list[str], tmp_path: Path
) -> None:
    ours, recording = graphed(tmp_path / "graphed", *overrides)
    replayed, plain = fit(ours, trainer(tmp_path / "plain", *overrides))
    epochs = ours.settings.max_epochs
    assert recording.n_captures == (4 if "trainer.resize_from=0.5" in overrides else 1)
    assert recording.n_replays == 20 * ours.settings.max_epochs - WARM_UP * recording.n_captures
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert epochs == len(ours.state.history)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["scheduler=onecycle"], "more than the learning rate"),
        (["optimizer._target_=torch.optim.Adamax"], "no fused step"),
    ],
)
def test_steps_that_cannot_be_captured_go_on_without_and_say_why(
    overrides: list[str], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        ours, recording = graphed(tmp_path / "graphed", *overrides)
        replayed, plain = fit(ours, trainer(tmp_path / "plain", *overrides))
    assert recording.n_captures == 0
    assert [reason in message for message in caplog.messages].count(True) == 1
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, msg=name)


def test_a_step_that_the_host_must_read_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, recording = graphed(tmp_path)
    net = ours.model.net
    net.register_forward_pre_hook(lambda _module, images: images[0].sum().item() and None)
    fit(ours)
    assert recording.n_captures == 1
    assert recording.n_replays == 0
    assert "no CUDA graph: operation not permitted" in caplog.text
    assert all(isinstance(group["lr"], float) for group in ours.optimizer.param_groups)


def test_graph_is_of_the_optimizer_that_a_checkpoint_leaves(tmp_path: Path) -> None:
    first = trainer(tmp_path / "first")
    fit(first)
    resumed = []
    captured, recording = graphed(tmp_path / "graphed")
    for ours in (captured, trainer(tmp_path / "plain")):
        ours.restore(tmp_path / "first")
        ours.settings.max_epochs = 2
        resumed += fit(ours)
    for name, value in resumed[1].items():
        torch.testing.assert_close(resumed[0][name], value, rtol=1e-4, atol=1e-4, msg=name)
    assert recording.n_replays == 20 - WARM_UP
