"""Training speed in images per second, against a plain PyTorch loop and against the hardware."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, alternating_medians
from benchmarks.peer_programs import plain_loop
from benchmarks.workload import BATCH_SIZE, build, our_trainer, overrides_of
from mnist_sweep.data.dataset import to_float
from mnist_sweep.training.device import autocast_dtype, pick_device

PEAK_MODEL = "vgg"  # spends nearly all of its time on arithmetic
# Targets of each model: in fp32, with default settings, with CUDA graphs.
TARGETS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "cpu": {"simple": (1.7, 2.2, None), "deeper": (1.3, 1.3, None), "vgg": (1.05, 1.15, None)},
    "cuda": {"simple": (None, None, 40), "deeper": (None, None, None), "vgg": (None, None, 10)},
}
PEAK_TARGETS = {"cpu": 0.9, "cuda": 0.35}  # share of the speed of a large matrix product


def training(folder: Path, *, quick: bool) -> Iterator[Row]:
    device = pick_device("auto").type
    for model, targets in TARGETS.get(device, TARGETS["cpu"]).items():
        overrides = overrides_of(model, quick=quick)
        measure: dict[str, Callable[[], float]] = {
            "fp32": our_trainer([*overrides, "trainer.precision=fp32"], folder / model / "fp32"),
            "peer": plain_loop(overrides),
            "default": our_trainer(overrides, folder / model / "default"),
        }
        if device == "cuda":
            graphs = [*overrides, "trainer.cuda_graphs=true"]
            measure["graphs"] = our_trainer(graphs, folder / model / "graphs")
        if model == PEAK_MODEL:
            measure |= {
                "fp32 product": matrix_product(torch.float32, quick=quick),
                "bf16 product": matrix_product(torch.bfloat16, quick=quick),
            }
        speed = alternating_medians(measure, 1 if quick else 5)
        suffixes = {"fp32": ", ours in fp32", "default": "", "graphs": ", ours with CUDA graphs"}
        for (variant, suffix), target in zip(suffixes.items(), targets, strict=True):
            if variant in speed:
                name = f"training {model}, batch {BATCH_SIZE}{suffix}"
                yield Row(name, "images/s", speed[variant], speed["peer"], target, "at least")
        if model == PEAK_MODEL:
            yield from share_of_peak(overrides, speed)


def share_of_peak(overrides: Sequence[str], speed: Mapping[str, float]) -> Iterator[Row]:
    """Compare the operations per second of training with those of a large matrix product."""
    cfg, data, model = build(overrides)
    device = data.train.images.device
    default_dtype = autocast_dtype(cfg.trainer.precision, device) or torch.float32
    with FlopCounterMode(display=False) as counter:  # forward and backward pass
        model(to_float(data.train.images[:2])).sum().backward()
    gflop_per_image = counter.get_total_flops() / 2 / 1e9
    for variant, dtype in {"default": default_dtype, "fp32": torch.float32}.items():
        precision = "bf16" if dtype is torch.bfloat16 else "fp32"
        name = f"training {PEAK_MODEL} in {precision}, against a matrix product"
        ours, peak = gflop_per_image * speed[variant], speed[f"{precision} product"]
        yield Row(name, "GFLOP/s", ours, peak, PEAK_TARGETS.get(device.type), "at least")


def matrix_product(dtype: torch.dtype, *, quick: bool) -> Callable[[], float]:
    """A function that multiplies large square matrices and returns GFLOP/s."""
    device = pick_device("auto")
    size = 256 if quick else 8192 if device.type == "cuda" else 2048
    factors = torch.randn(2, size, size, device=device, dtype=dtype)

    def multiply() -> float:
        started = time.monotonic()
        for _ in range(10):
            product = factors[0] @ factors[1]
        product[0, 0].item()  # waits for the device
        return 10 * 2 * size**3 / (time.monotonic() - started) / 1e9

    return multiply
