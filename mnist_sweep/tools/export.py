"""Exports a trained model to ONNX, .pt2 or TorchScript, and checks the file."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.timing import median_ms
from mnist_sweep.tools.trained_model import ABOUT, TrainedModel, load_data_for, load_model

log = logging.getLogger(__name__)

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}
N_IMAGES = 1000  # to compare the file and the model on
TOLERANCE = 1e-4  # largest difference of a logit

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # pixels [N, C, H, W] -> logits


def run(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Export the model, read the file back and compare the logits; exit with code 1 if they differ."""
    if cfg.format == "onnx" and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise UserError("format=onnx needs the extra [onnx]: pip install 'mnist-sweep[onnx]'")
    path = Path(cfg.output or f"model{SUFFIXES[cfg.format]}")
    if path.is_dir():
        raise UserError(f"output={path} is a folder: expected the path of a file")
    model = load_model(cfg)
    data = load_data_for(model, cfg, overrides)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output={path}: cannot create its folder ({error.strerror})") from error
    export = {"onnx": export_onnx, "pt2": export_pt2, "torchscript": export_torchscript}[cfg.format]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn about their own code
        exported = export(model, path)
    original = _on_numpy(model.model)
    images = data.train.images[:N_IMAGES].numpy().astype(np.float32) / np.float32(255)
    rows = [
        _row("model", original, model.n_bytes, images),
        _row(str(path), exported, path.stat().st_size, images),
    ]
    log.info(console.table(("", "MB", "ms, 1 image", "ms, 100 images"), rows))
    difference = float(np.abs(original(images) - exported(images)).max())
    log.info("logits of %d images differ by at most %.1e", len(images), difference)
    if not difference <= TOLERANCE:
        log.error("more than %.0e: do not use %s", TOLERANCE, path)
        sys.exit(1)


def export_pt2(model: TrainedModel, path: Path) -> Predict:
    """Write a .pt2 of torch.export, which the tools load as model=<path> with trust=true."""
    about = {"classes": model.classes, "shape": model.shape}
    torch.export.save(_program(model), path, extra_files={ABOUT: json.dumps(about)})
    return _on_numpy(torch.export.load(path).module())


def export_onnx(model: TrainedModel, path: Path) -> Predict:
    """Write an ONNX file with the input `images` and the output `logits`."""
    from onnxruntime import InferenceSession

    torch.onnx.export(
        _program(model), (), str(path), input_names=["images"], output_names=["logits"],
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(None, {"images": pixels})[0]
        return logits

    return predict


def export_torchscript(model: TrainedModel, path: Path) -> Predict:
    """Write a TorchScript file, by tracing."""
    torch.jit.save(torch.jit.trace(model.model, _example(model)), str(path))
    return _on_numpy(torch.jit.load(str(path)))


def _program(model: TrainedModel) -> torch.export.ExportedProgram:
    """Export the model for any number of images in a batch."""
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(model.model, (_example(model),), dynamic_shapes=(batch,))


def _example(model: TrainedModel) -> torch.Tensor:
    return torch.zeros(2, *model.shape)  # with one image, the exporters would fix the batch size


def _on_numpy(module: torch.nn.Module) -> Predict:
    def predict(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(pixels)).numpy()
        return logits

    return predict


def _row(
    name: str, predict: Predict, n_bytes: int, images: NDArray[np.float32]
) -> tuple[str, str, str, str]:
    """Return the row of the table: name, megabytes, milliseconds for 1 and for 100 images."""
    times = [f"{median_ms(predict, images[:n]):.2f}" for n in (1, 100)]
    return name, f"{n_bytes / 1e6:.2f}", times[0], times[1]
