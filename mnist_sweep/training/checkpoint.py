"""The files from which a run resumes (last.pt) and from which its model is loaded (best.pt).

Both are written atomically and hold only tensors and plain values, so loading one runs no code.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, TypeVar

import torch

from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.files import replace

log = logging.getLogger(__name__)

LAST, BEST = "last.pt", "best.pt"

T = TypeVar("T")


class Stateful(Protocol):
    """An object whose state a checkpoint can hold, as models and optimizers of PyTorch are."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> object: ...


@dataclass(frozen=True)
class BestModel:
    """The content of best.pt, each field under its own name."""

    model: Mapping[str, torch.Tensor]  # state_dict of a models.Classifier
    epoch: int
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W) of an image
    data: str  # sha256 of the dataset that it was trained on

    def __post_init__(self) -> None:
        """Raise TypeError if a field has another type. The fields may come from anybody's file."""
        check_state(self.model)
        check_images(self.shape, self.classes)
        if not isinstance(self.epoch, int) or not isinstance(self.data, str):
            raise TypeError("epoch is not a number, or data is not a text")


def check_state(state: Any) -> None:
    """Raise TypeError if `state` is not the state_dict of a model."""
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise TypeError("the weights are not tensors by name")


def check_images(shape: Any, classes: Any) -> None:
    """Raise TypeError if these are not the shape (C, H, W) and the class names of images."""
    if not (_is_list_of(int, shape) and len(shape) == 3 and min(shape) > 0):
        raise TypeError("the shape is not three sizes (C, H, W)")
    if not (_is_list_of(str, classes) and classes):
        raise TypeError("the classes are not a list of names")


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is kind for item in value)


class Checkpoint:
    """The checkpoint of a running training.

    Each item of last.pt is registered once, by its key in the file. The checkpoint adds the state of
    the random generators: `generator` and the global ones of its device.
    """

    def __init__(self, directory: Path, generator: torch.Generator) -> None:
        self.directory, self.generator = directory, generator
        self._items: dict[str, Stateful | None] = {}
        self._constants: dict[str, tuple[Any, str]] = {}

    def register(self, key: str, item: Stateful | None) -> None:
        """Save and restore the state of `item` under `key`. None is an item that this run lacks."""
        self._items[key] = item

    def register_constant(self, key: str, value: Any, difference: str) -> None:
        """Save `value` under `key`. A checkpoint with another value fails with the text `difference`."""
        self._constants[key] = value, difference

    def save(self) -> None:
        """Write last.pt."""
        constants = {key: value for key, (value, _) in self._constants.items()}
        items = {k: None if item is None else item.state_dict() for k, item in self._items.items()}
        save(self.directory / LAST, constants | items | _random_state(self.generator))

    def restore(self, directory: Path) -> None:
        """Restore all items from the last.pt of `directory`.

        Raises:
            UserError: the file is missing or damaged, or does not fit this run.
        """
        saved = load(directory / LAST)
        try:
            for key, (value, difference) in self._constants.items():
                if saved[key] != value:
                    raise UserError(f"cannot resume from {directory}: {difference}")
            self._restore(saved, directory)
        except UserError:
            raise
        except Exception as error:  # PyTorch's classes raise many kinds for a state of another form
            reason = one_line(error, with_kind=True)
            raise UserError(
                f"cannot resume from {directory}: its configuration does not fit: {reason}"
            ) from error

    def _restore(self, saved: Mapping[str, Any], directory: Path) -> None:
        for key, item in self._items.items():
            if item is not None and saved[key] != {}:  # a loss scaler saves {} when it is off
                item.load_state_dict(saved[key])
        if saved["device"] == self.generator.device.type:
            self.generator.set_state(saved["generator"])
        else:  # every kind of device has generators of its own kind
            log.warning(
                "WARNING: %s ran on %s: the results will not be bit-identical",
                directory,
                saved["device"],
            )
        _set_global_random_state(saved["rng"], self.generator.device)

    def save_best(self, best: BestModel) -> None:
        """Write best.pt."""
        save(self.directory / BEST, vars(best))

    def load_best(self) -> BestModel:
        """Read the best.pt of this run."""
        return load_best(self.directory)


def load_best(directory: Path) -> BestModel:
    """Read the best.pt of a run. Raises UserError if it is missing, damaged or something else."""
    return load_as(BestModel, directory / BEST)


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write to another name, then rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(dict(state), unfinished)
    replace(unfinished, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Raises:
        UserError: the file is missing, is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file of another kind
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its text explains how to load the file anyway
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{path} is damaged or is not a checkpoint: {lines[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise UserError(f"{path} is not a checkpoint: it contains a {type(state).__name__}")
    return state


def load_as(kind: type[T], path: Path) -> T:
    """Read a checkpoint file with the fields of the dataclass `kind`. Raises UserError like `load`."""
    state = load(path)
    try:
        return kind(**state)
    except TypeError as error:
        raise UserError(f"{path} is not a checkpoint of this kind: {error}") from error


def _random_state(generator: torch.Generator) -> dict[str, Any]:
    device = generator.device
    global_states: dict[str, Any] = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        global_states["cuda"] = torch.cuda.get_rng_state(device)
    return {"device": device.type, "generator": generator.get_state(), "rng": global_states}


def _set_global_random_state(states: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def delete(directory: Path) -> None:
    """Delete the checkpoints of a run."""
    for name in (LAST, BEST):
        (directory / name).unlink(missing_ok=True)
