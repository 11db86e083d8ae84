"""A trained model from wherever it lies, ready to be asked.

No code from its file is run: what could hold any is refused, unless `allow_pickle` says otherwise.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.common.errors import UserError, without_password
from mnist_sweep.data.dataset import Dataset, load_dataset
from mnist_sweep.data.images import DIGITS
from mnist_sweep.tracking import queries as recorded
from mnist_sweep.tracking import registry
from mnist_sweep.tracking import run as tracking
from mnist_sweep.training import checkpoint
from mnist_sweep.training.trainer import EVAL_BATCH_SIZE

ABOUT = "mnist_sweep.json"  # inside an exported .pt2
# What the graph of a .pt2 may call, and the sizes that it may compute.
TARGET = (
    r"torch\.ops\.aten\.[\w.]+|_operator\.(add|sub|mul|floordiv|mod|neg|getitem|eq|ne|[lg][te])"
)
EXPRESSION = (
    r"(Symbol|Integer|Add|Mul|Pow|FloorDiv|Mod|Max|Min|positive|nonnegative|integer|True|False"
    r"|'[su]\d+'|[-+*/(),= \d])*"
)
TRAIN_ONE = "python -m mnist_sweep trains one"


@dataclass(frozen=True)
class Loaded:
    """A model on the CPU, in eval mode: pixels [N, C, H, W] in 0..1 -> logits [N, n_classes]."""

    model: nn.Module
    shape: tuple[int, int, int]  # (C, H, W)
    classes: tuple[str, ...]
    name: str  # as it was asked for
    n_bytes: int  # of its file
    run_id: str | None = None  # in MLflow
    data_digest: str | None = None  # of what it was trained on, where that is known

    @property
    def is_of_digits(self) -> bool:
        """Of images of MNIST's kind, as which pictures are prepared."""
        return self.shape == (1, 28, 28) and self.classes == DIGITS

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[N, n_classes] for images [N, C, H, W]."""
        found = []
        with torch.inference_mode():
            for first in range(0, len(images), EVAL_BATCH_SIZE):
                batch = torch.from_numpy(images[first : first + EVAL_BATCH_SIZE]).float() / 255
                found.append(self.model(batch).softmax(1).numpy())
        return np.concatenate(found) if found else np.zeros((0, len(self.classes)), np.float32)


def load(cfg: DictConfig, source: str | None = None) -> Loaded:
    """The model that `source`, or else `cfg.source`, names.

    A run's id, models:/name@alias, models:/name/version, a checkpoint or the directory of a run, an
    exported .pt2. None: the champion, else the challenger, else the newest run's.

    Raises:
        UserError: there is none, or it is a pickle and `cfg.allow_pickle` is not set.
    """
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store)
    name = source or cfg.source or _first_choice(uri, cfg)
    path = Path(name)
    if path.is_dir() or path.name == checkpoint.BEST:
        return _from_checkpoint(path if path.is_dir() else path.parent)
    if path.suffix == ".pt2":
        return _from_pt2(path, name, allow_pickle=cfg.allow_pickle)
    if name.startswith("models:/"):
        return from_mlflow(uri, name, allow_pickle=cfg.allow_pickle)
    if re.fullmatch("[0-9a-f]{32}", name):
        return from_mlflow(uri, name, allow_pickle=cfg.allow_pickle)
    raise UserError(
        f"model={name}: expected a run's id, models:/name@alias, a run's directory, its "
        f"{checkpoint.BEST}, or an exported .pt2"
    )


def data_of(cfg: DictConfig, loaded: Loaded) -> Dataset:
    """`cfg.data`; where the command names none, what the model was trained on, as far as is known."""
    settings = Path(loaded.name) / ".hydra" / "config.yaml"  # of a checkpoint
    given = [o.lstrip("+").partition("=")[0] for o in HydraConfig.get().overrides.task]
    uri = tracking.store_uri(cfg.tracking.uri, cfg.store)
    if "data" in given or (loaded.run_id is None and not settings.is_file()):
        return load_dataset(cfg.data)
    run_id = loaded.run_id
    found = OmegaConf.load(settings) if run_id is None else recorded.config_of(uri, run_id)
    for key in given:
        if key.startswith("data."):
            OmegaConf.update(found, key, OmegaConf.select(cfg, key), force_add=True)
    data = load_dataset(found.data)
    digest = recorded.data_digest(uri, run_id) if run_id else loaded.data_digest
    if digest not in (data.digest, None):  # its test images may be those that it was trained on
        raise UserError(
            f"model={loaded.name} was trained on other images than the {data.name} that is here; "
            "bring those back, or choose with data=..."
        )
    return data


def check_fits(model: Loaded, data: Dataset) -> None:
    """Raises UserError where the model takes other images, or knows other classes."""
    if model.shape != data.shape or model.classes != tuple(data.classes):
        raise UserError(
            f"model={model.name} takes {list(model.shape)} and knows {_few(model.classes)}; "
            f"data={data.name} has {list(data.shape)} and the classes {_few(data.classes)}"
        )


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (f" ... {classes[-1]}" if len(classes) > 3 else "")


def _first_choice(uri: str, cfg: DictConfig) -> str:
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"no trained model under store={cfg.store}; {TRAIN_ONE}")
    name = cfg.tracking.register
    for alias in (registry.CHAMPION, registry.CHALLENGER) if name else ():
        if registry.by_alias(uri, name, alias):
            return f"models:/{name}@{alias}"
    run_id = recorded.newest_run(uri)
    if run_id is None:
        raise UserError(f"no trained model in {without_password(uri)}; {TRAIN_ONE}")
    return run_id


def from_mlflow(uri: str, name: str, *, allow_pickle: bool = False) -> Loaded:
    """`name` is a run's id or models:/... Raises UserError like `load`."""
    model_uri = name if name.startswith("models:/") else f"runs:/{name}/model"
    with recorded.model_folder(uri, model_uri) as (folder, about):
        file = folder / "data" / "model.pt2"
        model: nn.Module
        if file.exists():
            model = _program(file, name, allow_pickle=allow_pickle).module()
        elif allow_pickle:
            model = recorded.load_pickle(folder)
        else:
            raise UserError(
                f"model={name} is a pickle, which can run any code when it is loaded; "
                "allow_pickle=true if you trust where it comes from"
            )
        if about.signature is None:
            raise UserError(f"model={name} does not say what images it takes: no signature")
        shape = tuple(about.signature.inputs.inputs[0].shape[1:])
        classes = (about.metadata or {}).get("classes")
        size = about.model_size_bytes or 0
    return _loaded(model, shape, classes, name, size, run_id=about.run_id)


def _from_checkpoint(directory: Path) -> Loaded:
    settings = directory / ".hydra" / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{settings} is not there: {directory} is not the directory of a run")
    saved = checkpoint.load(directory / checkpoint.BEST)
    if "shape" not in saved:
        raise UserError(f"{directory / checkpoint.BEST} is of an earlier version; train it again")
    shape, classes = saved["shape"], saved["classes"]
    cfg = OmegaConf.load(settings)
    net = build(cfg.model, in_shape=tuple(shape), n_classes=len(classes))
    model = models.Classifier(net, [0.0] * shape[0], [1.0] * shape[0])
    model.load_state_dict(saved["model"])
    size = (directory / checkpoint.BEST).stat().st_size
    digest = saved.get("data")
    return _loaded(model.eval(), shape, classes, str(directory), size, data_digest=digest)


def _from_pt2(path: Path, name: str, *, allow_pickle: bool) -> Loaded:
    if not path.is_file():
        raise UserError(f"model={path}: no such file")
    extra = {ABOUT: ""}
    program = _program(path, name, allow_pickle=allow_pickle, extra_files=extra)
    try:
        about = json.loads(extra[ABOUT])
    except ValueError as error:
        raise UserError(f"model={path}: no .pt2 of mnist_sweep.export") from error
    size = path.stat().st_size
    return _loaded(program.module(), about["shape"], about["classes"], name, size)


def _program(
    path: Path, name: str, *, allow_pickle: bool, extra_files: dict[str, str] | None = None
) -> torch.export.ExportedProgram:
    """torch.export.load, which itself unpickles some parts of a file and loads compiled libraries."""
    try:
        if not allow_pickle and (part := _could_run_code(path)):
            raise UserError(
                f"model={name}: {part} in it can run any code when it is loaded; allow_pickle=true if "
                "you trust where it comes from"
            )
        return torch.export.load(path, extra_files=extra_files)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes torch stumble over
        raise UserError(f"model={name}: no whole .pt2") from error


def _could_run_code(path: Path) -> str | None:
    """The first part of a .pt2 that is not plain tensors and calls of ATen (format of torch 2.14).

    torch unpickles what its JSON says is pickled, and evaluates the expressions in it.
    """
    with zipfile.ZipFile(path) as archive:
        seen: set[str] = set()
        for part in archive.namelist():
            name = part.lower()  # torch finds its parts whatever their case, the first of two
            if name in seen or any(w in name for w in ("aotinductor", "custom_obj", "opaque_obj")):
                return part
            seen.add(name)
            if name.endswith(".json") and not all(map(_is_plain, _items(archive.read(part)))):
                return part
            if name.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(part)), weights_only=True)
                except (UnpicklingError, RuntimeError):
                    return part
    return None


def _items(content: bytes) -> Iterator[tuple[str, Any]]:
    """(key, value) of all objects of a JSON text, at any depth."""
    left = [json.loads(content)]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield from node.items()
            left += node.values()
        elif isinstance(node, list):
            left += node


def _is_plain(item: tuple[str, Any]) -> bool:
    key, value = item
    if key in ("use_pickle", "guards_code"):
        return not value
    pattern = {"target": TARGET, "expr_str": EXPRESSION}.get(key)
    return pattern is None or re.fullmatch(pattern, str(value)) is not None


def _loaded(
    model: nn.Module,
    shape: Sequence[int],
    classes: Sequence[str] | None,
    name: str,
    n_bytes: int,
    **known: str | None,
) -> Loaded:
    if len(shape) != 3:
        raise UserError(f"model={name} takes {list(shape)}, no images [C, H, W]")
    channels, height, width = shape
    if classes is None:  # of a model that others logged
        with torch.inference_mode():
            n_classes = model(torch.zeros(2, *shape)).shape[1]
        classes = [str(i) for i in range(n_classes)]
    return Loaded(model, (channels, height, width), tuple(classes), name, n_bytes, **known)
