"""Loads a trained model from MLflow, from a run's directory or from an exported .pt2.

Loading runs no code from the file: a file that can contain code is refused, unless `allow_pickle` is
set.
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
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_sweep import models
from mnist_sweep.common.build import build
from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.data.dataset import Dataset, load_dataset
from mnist_sweep.data.images import DIGITS
from mnist_sweep.tracking import queries, registry
from mnist_sweep.tracking.run import store_uri
from mnist_sweep.training import checkpoint
from mnist_sweep.training.trainer import EVAL_BATCH_SIZE

ABOUT = "mnist_sweep.json"  # file inside an exported .pt2: classes and shape
# What the graph of a .pt2 may call, and how it may compute sizes.
TARGET = (
    r"torch\.ops\.aten\.[\w.]+|_operator\.(add|sub|mul|floordiv|mod|neg|getitem|eq|ne|[lg][te])"
)
EXPRESSION = (
    r"(Symbol|Integer|Add|Mul|Pow|FloorDiv|Mod|Max|Min|positive|nonnegative|integer|True|False"
    r"|'[su]\d+'|[-+*/(),= \d])*"
)


@dataclass(frozen=True)
class TrainedModel:
    """A model on the CPU in eval mode, with what is known about it."""

    model: nn.Module  # pixels [N, C, H, W] float32 in 0..1 -> logits [N, n_classes]
    shape: tuple[int, int, int]  # (C, H, W)
    classes: tuple[str, ...]
    name: str  # as the command names it
    n_bytes: int  # of its file
    run_id: str | None = None  # of the MLflow run that logged it
    data_digest: str | None = None  # sha256 of its training data; for a checkpoint only

    @property
    def is_of_digits(self) -> bool:
        """Whether its images are like MNIST's, so that pictures are prepared like MNIST's."""
        return self.shape == (1, 28, 28) and self.classes == DIGITS

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return probabilities [N, n_classes] for images [N, C, H, W]."""
        results = [np.zeros((0, len(self.classes)), np.float32)]
        with torch.inference_mode():
            for first in range(0, len(images), EVAL_BATCH_SIZE):
                batch = torch.from_numpy(images[first : first + EVAL_BATCH_SIZE]).float() / 255
                results.append(self.model(batch).softmax(1).numpy())
        return np.concatenate(results)


def load_model(cfg: DictConfig, source: str | None = None) -> TrainedModel:
    """Load the model that `source` names, by default `cfg.source`.

    Args:
        cfg: the configuration of a tool, see `tools.config.ModelToolConfig`.
        source: a run id, models:/name@alias, models:/name/version, the directory of a run, its
            best.pt, or an exported .pt2. None and no `cfg.source`: the champion, else the
            challenger, else the newest run.

    Raises:
        UserError: there is no such model, or it can contain code and `cfg.allow_pickle` is not set.
    """
    uri = store_uri(cfg.tracking.uri, cfg.store)
    name = source or cfg.source or _default_source(uri, cfg)
    path = Path(name)
    if path.is_dir() or path.name == checkpoint.BEST:
        return _load_from_checkpoint(path if path.is_dir() else path.parent)
    if path.suffix == ".pt2":
        return _load_from_pt2(path, name, allow_pickle=cfg.allow_pickle)
    if name.startswith("models:/") or re.fullmatch("[0-9a-f]{32}", name):
        return load_from_mlflow(uri, name, allow_pickle=cfg.allow_pickle)
    raise UserError(
        f"model={name}: expected a run's id, models:/name@alias, a run's directory, its "
        f"{checkpoint.BEST}, or an exported .pt2"
    )


def load_data_for(model: TrainedModel, cfg: DictConfig, overrides: Sequence[str]) -> Dataset:
    """Load the dataset that a tool uses with a model.

    This is `cfg.data` if an override chooses a dataset, otherwise the dataset that the model was
    trained on, as far as that is recorded. Overrides of single settings (data.key=value) apply to
    either.

    Raises:
        UserError: the dataset does not load, does not fit the model, or its images differ from those
            that the model was trained on. The model may have been trained on its test images then.
    """
    given = [override.lstrip("+").partition("=")[0] for override in overrides]
    recorded = None if "data" in given else _training_config(model, cfg)
    if recorded is None:
        data = load_dataset(cfg.data)
    else:
        for key in given:
            if key.startswith("data."):
                OmegaConf.update(recorded, key, OmegaConf.select(cfg, key), force_add=True)
        data = load_dataset(recorded.data)
        digest = model.data_digest
        if model.run_id is not None:
            digest = queries.data_digest(store_uri(cfg.tracking.uri, cfg.store), model.run_id)
        if digest not in (data.digest, None):
            raise UserError(
                f"model={model.name} was trained on other images than those of {data.name} on this "
                "machine; restore them, or choose a dataset with data=..."
            )
    check_data_fits(model, data)
    return data


def _training_config(model: TrainedModel, cfg: DictConfig) -> Any:
    """Return the configuration that the model was trained with; None if it is not recorded."""
    if model.run_id is not None:
        return queries.config_of(store_uri(cfg.tracking.uri, cfg.store), model.run_id)
    settings = Path(model.name) / ".hydra" / "config.yaml"
    return OmegaConf.load(settings) if settings.is_file() else None


def check_data_fits(model: TrainedModel, data: Dataset) -> None:
    """Raise UserError if the model takes images of another shape or has other classes."""
    if model.shape != data.shape or model.classes != tuple(data.classes):
        raise UserError(
            f"model={model.name} takes {list(model.shape)} and knows {_few(model.classes)}; "
            f"data={data.name} has {list(data.shape)} and the classes {_few(data.classes)}"
        )


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (f" ... {classes[-1]}" if len(classes) > 3 else "")


def _default_source(uri: str, cfg: DictConfig) -> str:
    """Return the champion, else the challenger, else the newest run. Raises UserError without any."""
    name = cfg.tracking.register
    for alias in (registry.CHAMPION, registry.CHALLENGER) if name else ():
        if registry.by_alias(uri, name, alias):
            return f"models:/{name}@{alias}"
    run_id = queries.newest_trained_run(uri)
    if run_id is None:
        raise UserError(f"no trained model in {mask_url(uri)}; {queries.TRAIN_ONE}")
    return run_id


def load_from_mlflow(uri: str, name: str, *, allow_pickle: bool = False) -> TrainedModel:
    """Load the model of a run id or of models:/... from MLflow. Raises UserError like `load_model`."""
    model_uri = name if name.startswith("models:/") else f"runs:/{name}/model"
    with queries.model_folder(uri, model_uri) as (folder, description):
        file = folder / "data" / "model.pt2"
        model: nn.Module
        if file.exists():
            model = _load_program(file, name, allow_pickle=allow_pickle).module()
        elif allow_pickle:
            model = queries.load_pickle(folder)
        else:
            raise UserError(
                f"model={name} is a pickle, which can run any code when it is loaded; "
                "set allow_pickle=true if you trust its source"
            )
        if description.signature is None:
            raise UserError(f"model={name} has no signature, so the shape of its images is unknown")
        return _make(
            model,
            shape=description.signature.inputs.inputs[0].shape[1:],
            classes=(description.metadata or {}).get("classes"),
            name=name,
            n_bytes=description.model_size_bytes or 0,
            run_id=description.run_id,
        )


def _load_from_checkpoint(directory: Path) -> TrainedModel:
    settings = directory / ".hydra" / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{directory} is not the directory of a run: it has no .hydra/config.yaml")
    best = checkpoint.load_best(directory)
    cfg = OmegaConf.load(settings)
    net = build(cfg.model, in_shape=tuple(best.shape), n_classes=len(best.classes))
    model = models.Classifier(net, [0.0] * best.shape[0], [1.0] * best.shape[0])
    model.load_state_dict(best.model)
    return _make(
        model.eval(),
        shape=best.shape,
        classes=best.classes,
        name=str(directory),
        n_bytes=(directory / checkpoint.BEST).stat().st_size,
        data_digest=best.data,
    )


def _load_from_pt2(path: Path, name: str, *, allow_pickle: bool) -> TrainedModel:
    if not path.is_file():
        raise UserError(f"model={path}: no such file")
    extra = {ABOUT: ""}
    program = _load_program(path, name, allow_pickle=allow_pickle, extra_files=extra)
    try:
        about = json.loads(extra[ABOUT])
    except ValueError as error:
        raise UserError(f"model={path}: not a .pt2 that mnist_sweep exported") from error
    return _make(
        program.module(),
        shape=about["shape"],
        classes=about["classes"],
        name=name,
        n_bytes=path.stat().st_size,
    )


def _make(
    model: nn.Module,
    *,
    shape: Sequence[int],
    classes: Sequence[str] | None,
    name: str,
    n_bytes: int,
    run_id: str | None = None,
    data_digest: str | None = None,
) -> TrainedModel:
    if len(shape) != 3:
        raise UserError(f"model={name} takes inputs {list(shape)}, not images [C, H, W]")
    channels, height, width = shape
    if classes is None:  # another program logged the model
        with torch.inference_mode():
            n_classes = model(torch.zeros(2, *shape)).shape[1]
        classes = [str(i) for i in range(n_classes)]
    return TrainedModel(
        model, (channels, height, width), tuple(classes), name, n_bytes, run_id, data_digest
    )


def _load_program(
    path: Path, name: str, *, allow_pickle: bool, extra_files: dict[str, str] | None = None
) -> torch.export.ExportedProgram:
    """Load a .pt2. torch.export.load alone would unpickle parts of it and load compiled libraries."""
    try:
        if not allow_pickle and (part := _could_run_code(path)):
            raise UserError(
                f"model={name}: {part} in it can run any code when it is loaded; set "
                "allow_pickle=true if you trust its source"
            )
        return torch.export.load(path, extra_files=extra_files)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"model={name}: not a complete .pt2") from error


def _could_run_code(path: Path) -> str | None:
    """Return the first part of a .pt2 that is more than tensors and calls of ATen; None if all is plain.

    Follows the format of torch 2.14, which unpickles what its JSON declares as pickled, and evaluates
    the expressions in it.
    """
    with zipfile.ZipFile(path) as archive:
        seen: set[str] = set()
        for part in archive.namelist():
            name = part.lower()  # torch ignores case, and takes the first of two
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
    """Yield (key, value) of all objects in a JSON text, at any depth."""
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
