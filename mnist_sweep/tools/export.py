"""A trained model as a file: `python -m mnist_sweep.export [model=...] format=onnx|pt2|torchscript`."""

import json
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep import app
from mnist_sweep.common import console
from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.promote import median_ms
from mnist_sweep.tools.trained_model import ABOUT, Loaded, check_fits, data_of, load

log = logging.getLogger("mnist_sweep.export")  # not __main__, of which Hydra shows nothing

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt"}
N_IMAGES, TOLERANCE = 1000, 1e-4  # asked both ways, and by how much the logits may differ

Ask = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # pixels [N, C, H, W] -> logits


def export(cfg: DictConfig) -> None:
    """Write the file, read it back, and ask it and the model the same; exit 1 where they differ."""
    if cfg.format == "onnx" and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise UserError("format=onnx needs the extra [onnx]: pip install 'mnist-sweep[onnx]'")
    model = load(cfg)
    data = data_of(cfg, model)
    check_fits(model, data)
    path = Path(cfg.output or f"model{SUFFIXES[cfg.format]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporters, about themselves
        ask = {"onnx": onnx, "pt2": pt2, "torchscript": torchscript}[cfg.format](model, path)
    images = data.train.images[:N_IMAGES].numpy().astype(np.float32) / np.float32(255)
    original = _asked(model.model)
    difference = float(np.abs(original(images) - ask(images)).max())
    rows = []
    sizes = {"model": model.n_bytes, str(path): path.stat().st_size}
    for (name, n_bytes), answer in zip(sizes.items(), (original, ask), strict=True):
        times = [f"{median_ms(answer, images[:n]):.2f}" for n in (1, 100)]
        rows.append((name, f"{n_bytes / 1e6:.2f}", *times))
    log.info(console.table(("", "MB", "ms, 1 image", "ms, 100 images"), rows))
    log.info("logits of %d images differ by at most %.1e", len(images), difference)
    if not difference <= TOLERANCE:
        log.error("that is more than %.0e: do not use %s", TOLERANCE, path)
        sys.exit(1)


def exported(model: Loaded) -> torch.export.ExportedProgram:
    """With any number of images in a batch."""
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(model.model, (_example(model),), dynamic_shapes=(batch,))


def pt2(model: Loaded, path: Path) -> Ask:
    about = {"classes": model.classes, "shape": model.shape}
    torch.export.save(exported(model), path, extra_files={ABOUT: json.dumps(about)})
    return _asked(torch.export.load(path).module())


def onnx(model: Loaded, path: Path) -> Ask:
    from onnxruntime import InferenceSession

    torch.onnx.export(
        exported(model), (), str(path), input_names=["images"], output_names=["logits"],
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def ask(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"images": pixels})[0]
        return found

    return ask


def torchscript(model: Loaded, path: Path) -> Ask:
    torch.jit.save(torch.jit.trace(model.model, _example(model)), str(path))
    return _asked(torch.jit.load(str(path)))


def _asked(module: torch.nn.Module) -> Ask:
    def ask(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = module(torch.from_numpy(pixels)).numpy()
        return found

    return ask


def _example(model: Loaded) -> torch.Tensor:
    return torch.zeros(2, *model.shape)  # of one, the exporters take the batch for fixed


def main() -> None:
    app.name_the_model()
    app.tool("export", export)


if __name__ == "__main__":
    main()
