"""The state of a run on disk: whole or not at all, tensors and plain values only."""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from mnist_sweep.common.errors import UserError

LAST, BEST = "last.pt", "best.pt"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(dict(state), unfinished)
    os.replace(unfinished, path)


def load(path: Path) -> dict[str, Any]:
    """Raises UserError where there is no file or no whole one; runs no code from it."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise UserError(f"{path} is no whole checkpoint: {str(error).splitlines()[0]}") from error
    return state


def rng_state(device: torch.device) -> dict[str, Any]:
    """The global generators; the trainer's own generator is the trainer's to save."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
