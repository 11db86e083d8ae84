"""A sweep registers its best model, `promote` decides, and MLflow serves the champion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from mnist_sweep.tools.promote import compare
from tests.helpers import engine
from tests.helpers.cli import environment, free_port, tool
from tests.helpers.pictures import as_file, draw_digit
from tests.helpers.servers import answers

SMALL = ("data=mnist5k", "model=mlp", "trainer.max_epochs=2", "sweep.report=false")


def test_only_a_significantly_better_challenger_wins() -> None:
    better = np.arange(100) < 90
    worse, similar = np.arange(100) < 60, np.arange(100) < 89
    assert compare(worse, better)[0]
    assert not compare(similar, better)[0]
    assert not compare(better, worse)[0]
    assert compare(None, worse) == (True, "there was no champion yet")


def test_promote_without_a_registered_name_is_an_error(fresh: Path) -> None:
    done = tool("promote", "tracking.register=null", store=fresh)
    assert done.returncode == 2
    assert done.stderr == "error: tracking.register: expected the name of a registered model\n"
    assert not fresh.exists()


def sweep(store: Path, *arguments: str) -> None:
    assert engine.run(*SMALL, *arguments, store=store, module="mnist_sweep")[0] == 0


@pytest.mark.slow
def test_sweep_registers_its_best_model_and_promote_decides(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for _ in range(2):  # the second registers nothing new
        sweep(store, "optimizer.lr=1e-5,1e-4", "sweep.name=a")
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    (version,) = client.search_model_versions("name = 'mnist-sweep'")
    assert version.tags["sweep"] == "a"
    assert {"data.sha256", "best/val/accuracy", "test/accuracy"} <= version.tags.keys()
    assert client.get_run(version.run_id).data.tags["trial"] == "1"
    assert "there was no champion yet" in tool("promote", store=store).stdout
    sweep(store, "optimizer.lr=1e-3", "sweep.name=b")
    won = tool("promote", store=store).stdout
    assert "version 2 is now the champion (McNemar" in won
    assert "on 500 validation images)" in won
    assert "500 validation and 500 test images of mnist5k" in won
    sweep(store, "optimizer.lr=1e-5", "sweep.name=c")
    assert "the champion stays" in tool("promote", store=store).stdout
    assert client.get_model_version_by_alias("mnist-sweep", "champion").version == 2
    client.set_model_version_tag("mnist-sweep", "3", "data.sha256", "another")
    refused = tool("promote", store=store)
    assert refused.returncode == 2
    assert "the challenger on mnist5k (another)" in refused.stderr
    client.set_model_version_tag("mnist-sweep", "3", "data.sha256", version.tags["data.sha256"])
    tool("promote", "force=true", store=store)
    assert client.get_model_version_by_alias("mnist-sweep", "champion").version == 3
    for seed, n_before in ((1, 0), (2, 1)):
        sweep(store, "optimizer.lr=1e-5", f"data.split_seed={seed}", f"sweep.name=split{seed}")
        for _ in range(2):  # a repetition decides nothing new
            done = tool("promote", store=store)
            assert "on 500 test images)" in done.stdout
            assert f"They have decided {n_before} times before" in done.stdout


@pytest.mark.slow
def test_mlflow_serves_the_champion(tmp_path: Path) -> None:
    store, port = tmp_path / "store", free_port()
    sweep(store, "optimizer.lr=3e-3", "sweep.name=a")
    tool("promote", store=store)
    mlflow = str(Path(sys.executable).with_name("mlflow"))
    model = ["-m", "models:/mnist-sweep@champion", "--env-manager", "local"]
    server = subprocess.Popen(
        [mlflow, "models", "serve", *model, "--host", "127.0.0.1", "--port", str(port)],
        env=environment(
            MLFLOW_TRACKING_URI=f"sqlite:///{store}/mlflow.db",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        engine.wait_for(lambda: answers(f"{address}/ping"))
        image = np.asarray(Image.open(as_file(draw_digit(0).resize((28, 28))))).astype(float)
        request = Request(
            f"{address}/invocations",
            data=json.dumps({"inputs": [[(1 - image / 255).tolist()]]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as response:
            assert np.shape(json.load(response)["predictions"]) == (1, 10)
    finally:
        os.killpg(server.pid, 9)
        server.wait()
        shutil.rmtree(store)
