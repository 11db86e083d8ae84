"""Classifies image files and prints CSV or JSON lines."""

import csv
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep.common.errors import UserError
from mnist_sweep.data.images import SUFFIXES, image_files, read_image

BATCH = 500  # images in memory at a time
THREADS = 4  # that read files: Pillow releases Python's lock while it decodes


def run(cfg: DictConfig, _overrides: Sequence[str]) -> None:
    """Print a line for each file of `cfg.files`; exit with code 1 if one of them is unreadable."""
    if hasattr(signal, "SIGPIPE"):  # end silently when the reader of a pipe ends, such as `head`
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    warnings.filterwarnings("ignore", module="PIL")  # a damaged file has its line below
    paths = expand(cfg.files)
    from mnist_sweep.tools.trained_model import load_model  # imports torch: not without a file

    model = load_model(cfg)
    classes = [f"p({c})" for c in model.classes] if cfg.probabilities else []

    def read(path: Path) -> NDArray[np.uint8] | UserError:
        try:
            return read_image(path, model.shape, is_digit=model.is_of_digits)
        except UserError as error:
            return error

    n_unreadable = 0
    with _stdout() as out, ThreadPoolExecutor(THREADS) as pool:
        write = _line_writer(out, cfg.format, ["file", "class", "probability", *classes])
        for first in range(0, len(paths), BATCH):
            batch = paths[first : first + BATCH]
            readable = []
            for path, image in zip(batch, pool.map(read, batch), strict=True):
                if isinstance(image, UserError):
                    print(f"error: {path}: {image}", file=sys.stderr)
                    n_unreadable += 1
                else:
                    readable.append((path, image))
            if not readable:
                continue
            results = model.probabilities(np.stack([image for _, image in readable]))
            for (path, _), probabilities in zip(readable, results, strict=True):
                best = int(probabilities.argmax())
                rounded = [round(float(p), 4) for p in probabilities]
                row = {"file": str(path), "class": model.classes[best]}
                all_classes = dict(zip(classes, rounded, strict=False))
                write({**row, "probability": rounded[best], **all_classes})
    if n_unreadable:
        sys.exit(1)


def expand(paths: Sequence[str]) -> list[Path]:
    """Replace each folder by the images in it.

    Raises:
        UserError: there are no paths, or a folder has no images or cannot be read.
    """
    files = []
    for path in map(Path, paths):
        found = image_files(path) if os.path.isdir(path) else [path]
        if not found:
            raise UserError(
                f"{path}: expected a folder with images ({', '.join(sorted(SUFFIXES))})"
            )
        files += found
    if not all(paths) or not files:  # Path("") is the current folder
        raise UserError("expected image files or folders of image files")
    return files


def _stdout() -> TextIO:
    """Open standard output so that it takes the names of files as they are, in any encoding."""
    encoding = sys.stdout.encoding
    return open(
        sys.stdout.fileno(), "w", encoding=encoding, errors="surrogateescape", closefd=False
    )


def _line_writer(
    out: TextIO, form: str, columns: Sequence[str]
) -> Callable[[dict[str, Any]], object]:
    """Return a function that writes a row as JSON, or as CSV after a header."""
    if form == "json":
        return lambda row: print(json.dumps(row), file=out)
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    return writer.writerow
