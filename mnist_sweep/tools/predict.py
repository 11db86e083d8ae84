"""Classes of image files: `python -m mnist_sweep.predict [model=...] image.png folder/ ...`.

CSV or JSON (`format=json`) on standard output, one line a file; `probabilities=true` for all classes.
"""

import csv
import json
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from mnist_sweep import app
from mnist_sweep.common.errors import UserError
from mnist_sweep.data.images import image_files, read_image

BATCH = 500  # files that are read before the model is asked
THREADS = 4  # Pillow reads outside of Python's lock


def files(paths: Sequence[str]) -> list[Path]:
    """The named files, and of folders all pictures in them. Raises UserError where that is none."""
    found = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            found += image_files(path)
        else:
            found.append(path)  # named: told of if it cannot be read
    if not found:
        raise UserError("expected image files or folders of them")
    return found


def predict(cfg: DictConfig, paths: Sequence[str]) -> int:
    """Print the predictions; returns the number of files that could not be read."""
    named = files(paths)  # before torch is imported
    from mnist_sweep.tools.trained_model import load

    model = load(cfg)
    classes = [f"p({c})" for c in model.classes] if cfg.probabilities else []
    writer = csv.DictWriter(
        sys.stdout, ["file", "class", "probability", *classes], lineterminator="\n"
    )
    if cfg.format == "csv":
        writer.writeheader()

    def attempt(path: Path) -> NDArray[np.uint8] | UserError:
        try:
            return read_image(path, model.shape, is_digit=model.is_of_digits)
        except UserError as error:
            return error

    n_unreadable = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(named), BATCH):
            batch, good = named[first : first + BATCH], []
            for path, image in zip(batch, pool.map(attempt, batch), strict=True):
                if isinstance(image, UserError):
                    print(f"error: {path}: {image}", file=sys.stderr)
                    n_unreadable += 1
                else:
                    good.append((path, image))
            if not good:
                continue
            answers = model.probabilities(np.stack([image for _, image in good]))
            for (path, _), found in zip(good, answers, strict=True):
                best = int(found.argmax())
                shares = [round(float(p), 4) for p in found]
                row: dict[str, Any] = {"file": str(path), "class": model.classes[best]}
                row |= {"probability": shares[best], **dict(zip(classes, shares, strict=False))}
                if cfg.format == "csv":
                    writer.writerow(row)
                else:
                    print(json.dumps(row))
    return n_unreadable


def main() -> None:
    if hasattr(signal, "SIGPIPE"):  # `| head` ends it without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    app.name_the_model()
    paths = [
        a for a in sys.argv[1:] if not a.startswith("-") and ("=" not in a or Path(a).exists())
    ]
    sys.argv[1:] = [a for a in sys.argv[1:] if a not in paths]

    def do(cfg: DictConfig) -> None:
        if predict(cfg, paths):
            sys.exit(1)

    app.tool("predict", do)


if __name__ == "__main__":
    main()
