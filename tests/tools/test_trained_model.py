"""Loading a trained model: which files are refused, and which data a tool uses with it."""

import io
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
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
from mnist_sweep.data.sources import embedded_mnist
from mnist_sweep.tools.export import export_pt2
from mnist_sweep.tools.trained_model import load_data_for, load_model
from tests.helpers.cli import tool
from tests.helpers.configs import composed
from tests.helpers.hostile import Marked
from tests.helpers.pictures import draw_digit
from tests.helpers.trained import directory, run_id, store


def settings(**changes: Any) -> DictConfig:
    """Return the settings of a tool that uses the trained model."""
    uri = f"sqlite:///{store()}/mlflow.db"
    defaults = {"source": None, "trust": False, "store": str(store()), "seed": 0}
    tracking = {"uri": uri, "register": "mnist-sweep"}
    return OmegaConf.create({**defaults, "tracking": tracking, "data": None, **changes})


def test_newest_run_is_the_default() -> None:
    assert load_model(settings()).run_id == run_id()


def test_rebuilt_model_predicts_exactly_as_its_pt2() -> None:
    """The tools use the first, other programs the second."""
    rebuilt = load_model(settings(source=run_id()))
    (pt2,) = store().rglob("model.pt2")
    program = torch.export.load(pt2).module()
    images = embedded_mnist().test_images[:200]
    pixels = torch.from_numpy(images).float() / 255
    with torch.inference_mode():
        assert torch.equal(rebuilt.model(pixels), program(pixels))


def test_model_of_another_program_needs_trust(tmp_path: Path) -> None:
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
    assert "can run any code" in done.stderr
    assert "set trust=true" in done.stderr
    allowed = ("model=models:/pickled/1", "trust=true", str(picture))
    done = tool("predict", *allowed, store=store())
    assert done.returncode == 0, done.stderr


@cache
def exported() -> Path:
    """Return the trained model as a .pt2."""
    path = store() / "m.pt2"
    export_pt2(load_model(settings(), run_id()), path)
    return path


Parts = dict[str, bytes]  # files of a .pt2 by their names
MODEL = "model/models/model.json"
WEIGHTS = "model/data/weights/model_weights_config.json"


def touch(mark: Path) -> str:
    return f"__import__('pathlib').Path('{mark}').touch()"


def in_an_expression(code: str, parts: Parts) -> None:
    parts[MODEL] = re.sub(rb"Symbol\('s\d+'[^\"]*", code.encode(), parts[MODEL])
    assert code.encode() in parts[MODEL]


def pickled_weights(mark: Path, parts: Parts) -> None:
    """Replace the large weights, and change no length."""
    content = pickle.dumps(Marked(mark))
    parts[WEIGHTS] = parts[WEIGHTS].replace(b"false", b"true ")
    for name, weight in parts.items():
        if "/weights/weight_" in name and len(weight) > len(content):
            parts[name] = content.ljust(len(weight), b"\0")


def code_in_an_expression(mark: Path, parts: Parts) -> None:
    in_an_expression(f"{touch(mark)} or Integer(2)", parts)


def code_in_a_name_that_is_no_json(mark: Path, parts: Parts) -> None:
    code_in_an_expression(mark, parts)
    parts["model/models/model.jsox"] = parts.pop(MODEL)


def code_in_an_argument_name(mark: Path, parts: Parts) -> None:
    name = f"a):\\n    pass\\n{touch(mark)}\\ndef forward(self, a):\\n    '''#"
    plain = b'"forward_arg_names": ["input"]'
    assert plain in parts[MODEL]
    parts[MODEL] = parts[MODEL].replace(plain, f'"forward_arg_names": ["{name}"]'.encode())


def import_of_a_module(mark: Path, parts: Parts) -> None:
    (mark.parent / "hostile.py").write_text(f"{touch(mark)}\nfactory = dict")
    factory = {"default_factory_module": "hostile", "default_factory_name": "factory"}
    context = {**factory, "dict_context": []}
    spec = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    text = json.dumps(json.dumps([1, spec]))
    new = f'"out_spec": {text}, "forward'.encode()
    parts[MODEL] = re.sub(rb'"out_spec": "[^}]*}]", "forward', lambda _: new, parts[MODEL])
    assert new in parts[MODEL]


def endless_expression(_: Path, parts: Parts) -> None:
    in_an_expression("9**9**9**9", parts)


def archive_of(parts: Parts) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def original() -> Parts:
    with zipfile.ZipFile(exported()) as archive:
        root = archive.namelist()[0].split("/")[0]
        return {"model" + n.removeprefix(root): archive.read(n) for n in archive.namelist()}


def hostile_archives(folder: Path) -> Iterator[tuple[str, bytes, Path]]:
    """Yield (name, content, mark): each content creates the file `mark` when torch loads it."""
    spoils: list[Callable[[Path, Parts], None]] = [
        *(pickled_weights, code_in_an_expression),
        *(code_in_a_name_that_is_no_json, code_in_an_argument_name, import_of_a_module),
        endless_expression,
    ]
    for spoil in spoils:
        parts, mark = original(), folder / spoil.__name__
        spoil(mark, parts)
        yield spoil.__name__, archive_of(parts), mark
    parts, mark = original(), folder / "two_directories"
    pickled_weights(mark, parts)
    yield "two_directories", with_two_directories(archive_of(parts), archive_of(original())), mark


def with_two_directories(first: bytes, second: bytes) -> bytes:
    """Join two archives of the same size: torch reads the files of the first, zipfile of the second."""
    assert len(first) == len(second)
    end = first.rindex(b"PK\5\6")
    return first[:end] + second[:end] + first[end:]


def test_pt2_is_refused_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (in_mlflow,) = store().rglob("model.pt2")
    before = in_mlflow.read_bytes()
    for name, content, mark in hostile_archives(tmp_path):
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"can run any code in it; set trust=true"):
            load_model(settings(source=str(path)))
        in_mlflow.write_bytes(content)
        try:  # the model is rebuilt from the file beside it
            assert load_model(settings(source=run_id())).run_id == run_id()
        finally:
            in_mlflow.write_bytes(before)
        assert not mark.exists()


def test_predict_refuses_a_pt2_in_one_line(tmp_path: Path) -> None:
    picture = tmp_path / "7.png"
    draw_digit(7).save(picture)
    done = tool("predict", f"model={exported()}", str(picture), store=store())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: model={exported()}: loading a .pt2 can run any code in it; set trust=true if you "
        "trust its source\n"
    )
    done = tool("predict", f"model={exported()}", "trust=true", str(picture), store=store())
    assert done.stdout.splitlines()[1].split(",")[1] == "7"


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the run's directory."""
    shutil.copytree(directory(), tmp_path / "run")
    return tmp_path / "run"


def refused(source: Path | str, **changes: Any) -> str:
    """Load a model and its data, which fails, and return the message."""

    def load() -> None:
        model = load_model(settings(source=str(source), **changes))
        load_data_for(model, settings(**changes), [])

    with pytest.raises(UserError) as raised:
        load()
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert len(message.replace(str(source), "")) < 600
    return message


@pytest.mark.parametrize(
    "source",
    [
        *("models:/x", "models:/", "models:/x/1", "models:/x@y", "models:/x/y/z", "models:/x@"),
        *("models:/it's/1", 'models:/a"b/1', "models:/../../etc/1", "0" * 32, "m-" + "0" * 32),
        *("nowhere", "/", "/etc/passwd", "x" * 3000, "a\0b", "x.pt2", "/nowhere/best.pt", "it's"),
    ],
)
def test_name_of_no_model(source: str) -> None:
    refused(source)


@pytest.mark.parametrize(
    "text",
    [
        *("", "- 1", "a: [", "a: b", "model: simple", "model: [1]", "model: null", "\0"),
        *(
            "model: {_target_: null}",
            "model: {_target_: os.system, command: touch ran}",
            "model: {}",
        ),
        "model: {_target_: mnist_sweep.models.torch.load, f: best.pt}",
        "model: {_target_: mnist_sweep.models.CNN, _execution_whitelist_: ['*']}",
        "model: {_target_: mnist_sweep.models.CNN, activation: '${oc.env:HOME}'}",
        "model: {_target_: torch.nn.Linear, in_features: {_target_: os.getpid}, out_features: 1}",
    ],
)
def test_configuration_of_no_model(text: str, copied: Path) -> None:
    (copied / ".hydra" / "config.yaml").write_text(text)
    assert str(copied) in refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        *({"kernel_size": 0}, {"kernel_size": -1}, {"kernel_size": "x"}, {"head": [-3]}),
        *({"head": [0]}, {"head": [64]}, {"head": [10**30]}, {"stages": "x"}, {"stages": [[None]]}),
        *({"stages": None}, {"activation": "Module"}, {"activation": 3}, {"dropout": 7}, {"no": 1}),
        *({"padding": "x"}, {"_args_": [1]}, {"_target_": "torch.nn.Identity"}),
        *({"_target_": "torch.optim.Adam"}, {"_target_": "optuna.samplers.TPESampler"}),
        *({"_target_": "mnist_sweep.data.embedded_mnist"}, {"_target_": "torch.nn.LSTM"}),
    ],
    ids=str,
)
def test_configuration_that_does_not_fit_the_weights(change: dict[str, Any], copied: Path) -> None:
    path = copied / ".hydra" / "config.yaml"
    cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(path)))
    own = "_target_" not in change
    cfg.model = {**cfg.model, **change} if own else change
    OmegaConf.save(cfg, path)
    assert refused(copied).startswith(f"model={copied}: ")


@pytest.mark.parametrize(
    "change",
    [
        *("x", {"source": {"_target_": "os.system"}}, {"val_size": "x"}, {"val_size": 10**9}),
        *({"root": 5}, {"split_seed": -1}, {"split_seed": "z"}, {"source": {}}),
        {"root": "${oc.env:HOME}"},
    ],
    ids=str,
)
def test_recorded_data_that_does_not_load(change: Any, copied: Path) -> None:
    path = copied / ".hydra" / "config.yaml"
    cfg = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(path)))
    cfg.data = change if isinstance(change, str) else {**cfg.data, **change}
    if change == {"source": {}}:
        del cfg.data.source
    OmegaConf.save(cfg, path)
    refused(copied)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"shape": (3, 28, 28)},
            {"shape": (1, 14, 14)},
            {"shape": (1, 28)},
            {"shape": (0, 28, 28)},
        ),
        *({"shape": (2**62, 2**62, 2**62)}, {"shape": None}, {"classes": ["a"]}, {"classes": []}),
        *({"classes": "0123456789"}, {"model": None}, {"model": {}}, {"model": [1]}, {"data": 3}),
        {"model": {"net.0.weight": torch.ones(1)}},
    ],
    ids=str,
)
def test_weights_that_do_not_fit_their_configuration(change: dict[str, Any], copied: Path) -> None:
    best = torch.load(copied / "best.pt", weights_only=True)
    torch.save({**best, **change}, copied / "best.pt")
    assert str(copied) in refused(copied)


@pytest.mark.parametrize("content", [[1], 3, None, torch.ones(2), {}, {1: 2}], ids=str)
def test_best_pt_with_another_object(content: Any, copied: Path) -> None:
    torch.save(content, copied / "best.pt")
    assert "best.pt is not a checkpoint" in refused(copied)


def test_directory_of_half_a_run(copied: Path) -> None:
    best = (copied / "best.pt").read_bytes()
    for n_bytes in (0, 100, len(best) // 2, len(best) - 10):
        (copied / "best.pt").write_bytes(best[:n_bytes])
        assert "best.pt is damaged" in refused(copied)
    (copied / "best.pt").unlink()
    assert "best.pt: no such checkpoint" in refused(copied)
    shutil.rmtree(copied / ".hydra")
    assert "has no .hydra/config.yaml" in refused(copied)


def test_folder_of_a_model_in_mlflow_that_lacks_files_or_holds_others(tmp_path: Path) -> None:
    (saved,) = store().rglob("saved_model.pt")
    folder, backup = saved.parent.parent, tmp_path / "backup"
    shutil.copytree(folder, backup)
    plain = torch.load(saved, weights_only=True)
    changes = {
        "configs": [[], {}, [[]], [{}], [{"_target_": "os.system"}]],
        "weights": [[0.0], [float("nan")], ["x"], [1.0, 2.0]],
        "states": [[], [None]],
    }
    try:
        for name in ("MLmodel", "extra_files", "."):
            path = folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path)
            assert run_id() in refused(run_id())
            shutil.copytree(backup, folder, dirs_exist_ok=True)
        for content in (b"", b"a: [", b"- 1", b"signature: {inputs: x}"):
            (folder / "MLmodel").write_bytes(content)
            assert run_id() in refused(run_id())
        shutil.copytree(backup, folder, dirs_exist_ok=True)
        for key, values in changes.items():
            for value in values:
                torch.save({**plain, key: value}, saved)
                assert run_id() in refused(run_id())
        trusted = load_model(settings(source=run_id(), trust=True))  # its code may be missing here
        assert (trusted.shape, trusted.run_id) == ((1, 28, 28), run_id())
        saved.unlink()
        (folder / "data" / "model.pt2").write_bytes(b"broken")
        assert "not a complete .pt2" in refused(run_id(), trust=True)
        (folder / "data" / "model.pt2").unlink()
        assert "does not load" in refused(run_id(), trust=True)
    finally:
        shutil.copytree(backup, folder, dirs_exist_ok=True)


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
