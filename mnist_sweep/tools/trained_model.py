"""Loads a trained model from MLflow, from a run's directory or from an exported .pt2.

A model of this package is rebuilt from its configuration and its weights, which runs no code from a
file. Any other file can run code when it is loaded, so it needs `trust`.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mnist_sweep.analysis.predictions import load_recorded
from mnist_sweep.common.configs import plain_node, read_config
from mnist_sweep.common.errors import UserError, one_line
from mnist_sweep.common.secrets import mask_url
from mnist_sweep.data.dataset import Dataset, load_dataset
from mnist_sweep.data.images import DIGITS
from mnist_sweep.tracking import queries, registry
from mnist_sweep.tracking.queries import Model
from mnist_sweep.tracking.run import store_uri
from mnist_sweep.training import checkpoint
from mnist_sweep.training.saved_model import FILE, SavedModel
from mnist_sweep.training.trainer import EVAL_BATCH_SIZE

log = logging.getLogger(__name__)

ABOUT = "mnist_sweep.json"  # file inside an exported .pt2: classes and shape
SETTINGS = Path(".hydra", "config.yaml")  # in the directory of a run
TRUST = "set trust=true if you trust its source"


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
        UserError: there is no such model, or loading it can run code and `cfg.trust` is not set.
    """
    uri = store_uri(cfg.tracking.uri, cfg.store)
    name = source or cfg.source or _default_source(uri, cfg)
    path = Path(name)
    is_directory = os.path.isdir(name)  # unlike pathlib's, also False for a name that is too long
    if is_directory or path.name == checkpoint.BEST:
        return _load_from_checkpoint(path if is_directory else path.parent)
    if path.suffix == ".pt2":
        return _load_from_pt2(path, name, trust=cfg.trust)
    if name.startswith("models:/") or re.fullmatch("[0-9a-f]{32}", name):
        return load_from_mlflow(uri, name, trust=cfg.trust)
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
        settings = OmegaConf.create({"data": plain_node(recorded, "data", f"model={model.name}")})
        for key in given:
            if key.startswith("data."):
                OmegaConf.update(settings, key, OmegaConf.select(cfg, key), force_add=True)
        data = load_recorded(settings.data, f"model={model.name}")
        digest = model.data_digest
        if model.run_id is not None:
            digest = queries.data_digest(store_uri(cfg.tracking.uri, cfg.store), model.run_id)
        if digest is None:
            raise UserError(
                f"model={model.name} does not say which images it was trained on; choose a dataset "
                "with data=..."
            )
        if digest != data.digest:
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
    settings = Path(model.name) / SETTINGS
    return read_config(settings) if settings.is_file() else None


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


def load_from_mlflow(uri: str, name: str, *, trust: bool = False) -> TrainedModel:
    """Load the model of a run id or of models:/... from MLflow. Raises UserError like `load_model`."""
    with queries.model_folder(uri, _model_uri(name)) as (folder, description):
        path = folder / "extra_files" / FILE
        run_id = description.run_id if isinstance(description.run_id, str) else None
        if path.is_file():
            try:
                return _rebuild(SavedModel.load(path), name, path.stat().st_size, run_id=run_id)
            except UserError as error:
                if not trust:
                    raise UserError(f"model={name}: {error}") from error
                log.warning("WARNING: loading the .pt2 of %s instead: %s", name, error)
        if not trust:
            raise UserError(
                f"model={name} has no {FILE}, and loading its other files can run any code in them; "
                f"{TRUST}{_hint(uri, run_id)}"
            )
        return _load_trusted(folder, description, name, run_id)


def _load_trusted(folder: Path, description: Model, name: str, run_id: str | None) -> TrainedModel:
    """Load a model that another program or version 0.1 logged. This runs any code in its files."""
    file = folder / "data" / "model.pt2"
    try:
        model = _load_program(file, name).module() if file.exists() else queries.load_pickle(folder)
        signature = description.signature
        shape = None if signature is None else signature.inputs.inputs[0].shape[1:]
    except UserError:
        raise
    except Exception as error:  # pickles and MLflow raise many kinds
        reason = one_line(error, with_kind=True)
        raise UserError(f"model={name} does not load: {reason}") from error
    if shape is None:
        raise UserError(f"model={name} has no signature, so the shape of its images is unknown")
    return _make(
        model,
        shape=shape,
        classes=(description.metadata or {}).get("classes"),
        name=name,
        n_bytes=description.model_size_bytes or 0,
        run_id=run_id,
    )


def load_saved(uri: str, run_id: str) -> SavedModel:
    """Load what rebuilds the model of a run. Raises UserError if MLflow does not have it."""
    with queries.model_folder(uri, _model_uri(run_id)) as (folder, _):
        path = folder / "extra_files" / FILE
        if not path.is_file():  # a model of version 0.1
            raise UserError(f"the model of run {run_id} has no {FILE}")
        return SavedModel.load(path)


def _model_uri(name: str) -> str:
    return name if name.startswith("models:/") else f"runs:/{name}/model"


def _hint(uri: str, run_id: str | None) -> str:
    """Return a hint at the directory of a run, if its checkpoint is on this machine."""
    directory = queries.directory_of(uri, run_id) if run_id else None
    if directory is None or not (directory / checkpoint.BEST).is_file():
        return ""
    return f", or load the checkpoint of its run, model={directory}"


def _load_from_checkpoint(directory: Path) -> TrainedModel:
    settings = directory / SETTINGS
    if not settings.is_file():
        raise UserError(f"{directory} is not the directory of a run: it has no {SETTINGS}")
    best, path = checkpoint.load_best(directory), directory / checkpoint.BEST
    config: Any = OmegaConf.to_container(plain_node(read_config(settings), "model", settings))
    saved = SavedModel([config], [best.model], [1.0], best.shape, best.classes)
    try:
        return _rebuild(saved, str(directory), path.stat().st_size, data_digest=best.data)
    except UserError as error:
        raise UserError(f"model={directory}: {error}") from error


def _rebuild(saved: SavedModel, name: str, n_bytes: int, **record: str | None) -> TrainedModel:
    model = saved.build()
    channels, height, width = saved.shape
    return TrainedModel(
        model, (channels, height, width), tuple(saved.classes), name, n_bytes, **record
    )


def _load_from_pt2(path: Path, name: str, *, trust: bool) -> TrainedModel:
    if not path.is_file():
        raise UserError(f"model={path}: no such file")
    if not trust:
        raise UserError(f"model={path}: loading a .pt2 can run any code in it; {TRUST}")
    extra = {ABOUT: ""}
    program = _load_program(path, name, extra_files=extra)
    try:
        about = json.loads(extra[ABOUT])
        shape, classes = about["shape"], about["classes"]
        checkpoint.check_images(shape, classes)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model={path}: not a .pt2 that mnist_sweep exported") from error
    return _make(
        program.module(), shape=shape, classes=classes, name=name, n_bytes=path.stat().st_size
    )


def _make(
    model: nn.Module,
    *,
    shape: Sequence[int],
    classes: Sequence[str] | None,
    name: str,
    n_bytes: int,
    run_id: str | None = None,
) -> TrainedModel:
    if len(shape) != 3:
        raise UserError(f"model={name} takes inputs {list(shape)}, not images [C, H, W]")
    channels, height, width = shape
    if classes is None:  # another program logged the model
        with torch.inference_mode():
            n_classes = model(torch.zeros(2, *shape)).shape[1]
        classes = [str(i) for i in range(n_classes)]
    return TrainedModel(model, (channels, height, width), tuple(classes), name, n_bytes, run_id)


def _load_program(
    path: Path, name: str, *, extra_files: dict[str, str] | None = None
) -> torch.export.ExportedProgram:
    """Load a .pt2, which runs any code in it: torch unpickles parts of it and evaluates expressions."""
    logging.getLogger("torch.export").setLevel(logging.CRITICAL)  # it logs the traceback too
    try:
        return torch.export.load(path, extra_files=extra_files)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"model={name}: not a complete .pt2") from error
