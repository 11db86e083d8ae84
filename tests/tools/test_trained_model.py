"""Loading a trained model: which files are refused, and which data a tool uses with it."""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import infer_signature
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.export import export_pt2
from mnist_sweep.tools.trained_model import load_data_for, load_model
from tests.helpers.cli import tool
from tests.helpers.configs import composed
from tests.helpers.pictures import draw_digit
from tests.helpers.trained import directory, run_id, store


def settings(**changes: Any) -> DictConfig:
    """Return the settings of a tool that uses the trained model."""
    uri = f"sqlite:///{store()}/mlflow.db"
    defaults = {"source": None, "allow_pickle": False, "store": str(store()), "seed": 0}
    tracking = {"uri": uri, "register": "mnist-sweep"}
    return OmegaConf.create({**defaults, "tracking": tracking, "data": None, **changes})


def test_newest_run_is_the_default() -> None:
    assert load_model(settings()).run_id == run_id()


def test_pickled_model_needs_permission(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{store()}/mlflow.db")
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    example = np.zeros((2, 1, 28, 28), np.float32)
    mlflow.pytorch.log_model(
        net,
        name="model",
        registered_model_name="pickled",
        serialization_format="pickle",
        signature=infer_signature(example, np.zeros((2, 10), np.float32)),
        pip_requirements=["torch"],
    )
    mlflow.end_run()
    picture = tmp_path / "0.png"
    draw_digit(0).save(picture)
    done = tool("predict", "model=models:/pickled/1", str(picture), store=store())
    assert done.returncode == 2
    assert "is a pickle" in done.stderr
    allowed = ("model=models:/pickled/1", "allow_pickle=true", str(picture))
    done = tool("predict", *allowed, store=store())
    assert done.returncode == 0, done.stderr


@cache
def exported() -> Path:
    """Return the trained model as a .pt2."""
    path = store() / "m.pt2"
    export_pt2(load_model(settings(), run_id()), path)
    return path


class Marked:
    """Creates the file `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled_object(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    parts[f"{root}/data/constants/opaque_obj_0"] = pickle.dumps(Marked(mark))


def pickled_weights(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    name = f"{root}/data/weights/model_weights_config.json"
    config = json.loads(parts[name])
    for weight in config["config"].values():
        weight["use_pickle"] = True
    parts[name] = json.dumps(config, separators=(",", ":")).encode()
    for part in parts:
        if "/weights/weight_" in part:
            parts[part] = pickle.dumps(Marked(mark))


def code_in_an_expression(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    name = f"{root}/models/model.json"
    code = f"__import__('pathlib').Path('{mark}').touch() or Integer(2)"
    parts[name] = re.sub(rb"Symbol\('s\d+'[^\"]*", code.encode(), parts[name])
    assert code.encode() in parts[name]


def code_in_a_name_of_other_case(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    code_in_an_expression(root, mark, parts)
    parts[f"{root}/models/MODEL.json"] = parts.pop(f"{root}/models/model.json")


@pytest.mark.parametrize(
    "spoil", [pickled_object, pickled_weights, code_in_an_expression, code_in_a_name_of_other_case]
)
def test_pt2_with_code_is_refused(
    spoil: Callable[[str, Path, dict[str, bytes]], None], tmp_path: Path
) -> None:
    path, mark = tmp_path / "m.pt2", tmp_path / "ran"
    with zipfile.ZipFile(exported()) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    spoil(next(iter(parts)).split("/")[0], mark, parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="in it can run any code"):
        load_model(settings(source=str(path)))
    assert not mark.exists()


def test_predict_refuses_a_pt2_with_code(tmp_path: Path) -> None:
    path, mark, picture = tmp_path / "m.pt2", tmp_path / "ran", tmp_path / "0.png"
    draw_digit(0).save(picture)
    shutil.copy(exported(), path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Marked(mark)))
    done = tool("predict", f"model={path}", str(picture), store=store())
    assert done.returncode == 2
    assert "opaque_obj_0 in it can run any code" in done.stderr
    assert not mark.exists()


def test_data_of_the_training_is_the_default() -> None:
    for source in (run_id(), str(directory())):
        model = load_model(settings(source=source))
        data = load_data_for(model, settings(), [])
        assert (data.name, len(data.test)) == ("mnist5k", 500)


def test_overrides_of_data_apply_to_the_data_of_the_training() -> None:
    cfg = settings(data={"val_size": 20})
    data = load_data_for(load_model(cfg), cfg, ["data.val_size=20"])
    assert (data.name, len(data.val)) == ("mnist5k", 20)


def test_other_images_than_those_of_the_training_are_refused(tmp_path: Path) -> None:
    """The model may have been trained on images that the test set now contains."""
    client = MlflowClient(f"sqlite:///{store()}/mlflow.db")
    digest = client.get_run(run_id()).data.tags["data.sha256"]
    client.set_tag(run_id(), "data.sha256", "0" * 64)
    try:
        of_run = tool("evaluate", f"model={run_id()}", "robustness=false", store=store())
    finally:
        client.set_tag(run_id(), "data.sha256", digest)
    copy = tmp_path / "it's, a copy"
    shutil.copytree(directory(), copy)
    weights = torch.load(copy / "best.pt", weights_only=True)
    torch.save({**weights, "data": "0" * 64}, copy / "best.pt")
    of_checkpoint = tool("evaluate", f"model={copy}", "robustness=false", store=store())
    for done in (of_run, of_checkpoint):
        assert done.returncode == 2
        assert "was trained on other images than those of mnist5k" in done.stderr


def test_data_of_other_classes_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (20, 20), 60 * i).save(tmp_path / split / label / f"{i}.png")
    overrides = ["data=folder", f"data.root={tmp_path}", "data.val_size=2"]
    cfg = settings(data=composed(*overrides).data)
    with pytest.raises(UserError, match="and the classes a, b"):
        load_data_for(load_model(cfg), cfg, overrides)
