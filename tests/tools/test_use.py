"""Predict, promote, evaluate, export, serve: the command lines, on a model trained here."""

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from omegaconf import OmegaConf
from PIL import Image
from test_images import as_file, drawn
from test_ui import answers
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools import trained_model as loading
from tests.helpers import engine
from tests.helpers.cli import ROOT, environment, recorded
from tests.helpers.trained import store


def tool(name: str, *arguments: object, at: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"mnist_sweep.{name}", f"store={at or store()}"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def run_id() -> str:
    return next(r.info.run_id for r in recorded(store()) if "best/val/accuracy" in r.data.metrics)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for digit in (0, 1, 7):
        drawn(digit).save(tmp_path / f"{digit}=x.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_predict_prints_a_line_a_file(folder: Path) -> None:
    done = tool("predict", folder)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [(Path(r["file"]).name[0], r["class"]) for r in rows] == [(d, d) for d in "017"]
    (best,) = store().rglob("best.pt")
    named = tool(
        "predict", f"model={best}", "format=json", "probabilities=true", folder / "7=x.png"
    )
    row = json.loads(named.stdout)
    assert row["class"] == "7"
    assert row["probability"] == row["p(7)"]
    assert sum(row[f"p({d})"] for d in range(10)) == pytest.approx(1, abs=1e-3)


def test_predict_names_what_it_cannot_read_and_goes_on(folder: Path) -> None:
    done = tool("predict", folder / "notes.txt", folder / "1=x.png", folder / "none.png")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert [line.split(": ")[0] for line in done.stderr.splitlines()] == ["error"] * 2
    assert "none.png: no such file" in done.stderr


def test_predict_reads_thousands(tmp_path: Path) -> None:
    first = tmp_path / "0.png"
    drawn(0).resize((40, 40)).save(first)
    for i in range(1, 2000):
        (tmp_path / f"{i}.png").hardlink_to(first)
    done = tool("predict", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2001


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected image files"),
        (["model=nosuch", "a.png"], "model=nosuch: expected a run's id"),
        (["model=models:/nosuch@champion", "a.png"], "no model models:/nosuch@champion"),
        ([f"model={'0' * 32}", "a.png"], f"no model runs:/{'0' * 32}/model"),
        (["model=conf", "a.png"], "is not the directory of a run"),
    ],
)
def test_predict_tells_of_a_mistake_in_a_line(arguments: list[str], told: str) -> None:
    done = tool("predict", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_pickled_model_is_refused(tmp_path: Path) -> None:
    import mlflow
    from mlflow.models import infer_signature

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
    drawn(0).save(picture)
    done = tool("predict", "model=models:/pickled/1", picture)
    assert done.returncode == 2
    assert "is a pickle" in done.stderr
    allowed = tool("predict", "model=models:/pickled/1", "allow_pickle=true", picture)
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.parametrize(
    ("form", "name"), [("pt2", "m.pt2"), ("onnx", "m.onnx"), ("torchscript", "m.pt")]
)
def test_export_writes_a_file_that_answers_the_same(form: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    done = tool("export", f"format={form}", f"output={path}", f"model={run_id()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logits of 1000 images differ by at most" in done.stdout
    assert path.stat().st_size > 1e6
    if form == "pt2":
        drawn(7).save(tmp_path / "7.png")
        said = tool("predict", f"model={path}", tmp_path / "7.png").stdout
        assert said.splitlines()[1].split(",")[1] == "7"
    if form == "torchscript":
        alone = torch.jit.load(str(path))
        assert alone(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


class Marked:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    parts[f"{root}/data/constants/opaque_obj_0"] = pickle.dumps(Marked(mark))


def weights_as_pickles(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    name = f"{root}/data/weights/model_weights_config.json"
    about = json.loads(parts[name])
    for weight in about["config"].values():
        weight["use_pickle"] = True
    parts[name] = json.dumps(about, separators=(",", ":")).encode()
    for part in parts:
        if "/weights/weight_" in part:
            parts[part] = pickle.dumps(Marked(mark))


def expression(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    name = f"{root}/models/model.json"
    code = f"__import__('pathlib').Path('{mark}').touch() or Integer(2)"
    parts[name] = re.sub(rb"Symbol\('s\d+'[^\"]*", code.encode(), parts[name])
    assert code.encode() in parts[name]


def in_other_case(root: str, mark: Path, parts: dict[str, bytes]) -> None:
    expression(root, mark, parts)
    parts[f"{root}/models/MODEL.json"] = parts.pop(f"{root}/models/model.json")


@pytest.mark.parametrize("spoil", [pickled, weights_as_pickles, expression, in_other_case])
def test_code_within_a_pt2_is_not_run(
    spoil: Callable[[str, Path, dict[str, bytes]], None], tmp_path: Path
) -> None:
    made, path, mark = exported(), tmp_path / "m.pt2", tmp_path / "ran"
    with zipfile.ZipFile(made) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    spoil(next(iter(parts)).split("/")[0], mark, parts)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    settings = {"source": str(path), "allow_pickle": False, "tracking": {"uri": None}}
    with pytest.raises(UserError, match="in it can run any code"):
        loading.load(OmegaConf.create({**settings, "store": str(tmp_path)}))
    assert not mark.exists()


@cache
def exported() -> Path:
    path = store() / "m.pt2"
    assert tool("export", "format=pt2", f"output={path}", f"model={run_id()}").returncode == 0
    return path


def test_predict_refuses_a_pt2_with_code_in_it(tmp_path: Path) -> None:
    path, mark, picture = tmp_path / "m.pt2", tmp_path / "ran", tmp_path / "0.png"
    drawn(0).save(picture)
    shutil.copy(exported(), path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(Marked(mark)))
    done = tool("predict", f"model={path}", picture)
    assert done.returncode == 2
    assert "opaque_obj_0 in it can run any code" in done.stderr
    assert not mark.exists()


def test_evaluate_measures_and_records() -> None:
    done = tool("evaluate", f"model={run_id()}", "data.batch_size=50")
    assert done.returncode == 0, done.stderr
    assert "on 500 test images of mnist5k" in done.stdout
    assert re.search(r"^inverted +\d+\.\d\d$", done.stdout, re.MULTILINE), "it has no strength"
    run = recorded(store())[0]
    trained = next(r for r in recorded(store()) if r.info.run_id == run_id())
    assert run.data.tags["kind"] == "evaluation"
    assert run.data.tags["of.run_id"] == run_id()
    same = run.data.metrics["test/accuracy"], trained.data.metrics["test/accuracy"]
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    client = MlflowClient(f"sqlite:///{store()}/mlflow.db")
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"robustness.png", "robustness.csv", "confusion_matrix.png"} <= kept


def test_evaluate_refuses_other_images_than_those_of_the_training(tmp_path: Path) -> None:
    """The embedded images are of MNIST's training set, on which a model looks better than it is."""
    client = MlflowClient(f"sqlite:///{store()}/mlflow.db")
    digest = client.get_run(run_id()).data.tags["data.sha256"]
    client.set_tag(run_id(), "data.sha256", "0" * 64)
    try:
        done = tool("evaluate", f"model={run_id()}", "robustness=false")
    finally:
        client.set_tag(run_id(), "data.sha256", digest)
    (best,) = store().rglob("best.pt")
    shutil.copytree(best.parent, tmp_path / "it's")
    weights = torch.load(best, weights_only=True)
    torch.save({**weights, "data": "0" * 64}, tmp_path / "it's" / "best.pt")
    of_checkpoint = tool("evaluate", f"model={tmp_path}/it's", "robustness=false")
    for ended in (done, of_checkpoint):
        assert ended.returncode == 2
        assert "was trained on other images than the mnist5k that is here" in ended.stderr


def test_evaluate_refuses_data_of_other_classes(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (20, 20), 60 * i).save(tmp_path / split / label / f"{i}.png")
    done = tool("evaluate", "data=folder", f"data.root={tmp_path}", "data.val_size=2")
    assert done.returncode == 2
    assert "and the classes a, b" in done.stderr


@pytest.mark.slow
def test_sweep_registers_its_best_and_promote_decides(tmp_path: Path) -> None:
    at = tmp_path / "store"
    small = ("data=mnist5k", "model=mlp", "trainer.max_epochs=2", "sweep.report=false")
    assert "no trained model" in tool("predict", "a.png", at=at).stderr
    first = (*small, "optimizer.lr=1e-5,1e-4", "sweep.name=a")
    for _ in range(2):
        assert engine.run(*first, store=at, module="mnist_sweep")[0] == 0
    client = MlflowClient(f"sqlite:///{at}/mlflow.db")
    (version,) = client.search_model_versions("name = 'mnist-sweep'")
    assert version.tags["sweep"] == "a"
    assert {"data.sha256", "best/val/accuracy", "test/accuracy"} <= version.tags.keys()
    assert client.get_run(version.run_id).data.tags["trial"] == "1"
    assert "there was no champion yet" in tool("promote", at=at).stdout
    engine.run(*small, "optimizer.lr=1e-3", "sweep.name=b", store=at, module="mnist_sweep")
    won = tool("promote", at=at).stdout
    assert "version 2 is now the champion (McNemar" in won
    assert "500 test images of mnist5k" in won
    engine.run(*small, "optimizer.lr=1e-5", "sweep.name=c", store=at, module="mnist_sweep")
    assert "the champion stays" in tool("promote", at=at).stdout
    assert client.get_model_version_by_alias("mnist-sweep", "champion").version == 2
    client.set_model_version_tag("mnist-sweep", "3", "data.sha256", "another")
    refused = tool("promote", at=at)
    assert refused.returncode == 2
    assert "the challenger on mnist5k (another)" in refused.stderr
    client.set_model_version_tag("mnist-sweep", "3", "data.sha256", version.tags["data.sha256"])
    tool("promote", "force=true", at=at)
    assert client.get_model_version_by_alias("mnist-sweep", "champion").version == 3


@pytest.mark.slow
def test_mlflow_serves_the_champion(tmp_path: Path) -> None:
    at = tmp_path / "store"
    small = ("data=mnist5k", "model=mlp", "trainer.max_epochs=2", "sweep.report=false")
    engine.run(*small, "optimizer.lr=3e-3", "sweep.name=a", store=at, module="mnist_sweep")
    tool("promote", at=at)
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    model = ["-m", "models:/mnist-sweep@champion", "--env-manager", "local"]
    server = subprocess.Popen(
        [mlflow, "models", "serve", *model, "--host", "127.0.0.1", "--port", "5461"],
        env=environment(
            MLFLOW_TRACKING_URI=f"sqlite:///{at}/mlflow.db",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        engine.wait_for(lambda: answers("http://127.0.0.1:5461/ping"))
        image = np.asarray(Image.open(as_file(drawn(0).resize((28, 28))))).astype(float)
        asked = {"inputs": [[(1 - image / 255).tolist()]]}
        request = Request(
            "http://127.0.0.1:5461/invocations",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as answer:
            assert np.shape(json.load(answer)["predictions"]) == (1, 10)
    finally:
        os.killpg(server.pid, 9)
        server.wait()
        shutil.rmtree(at)
