"""The tool `data`."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.helpers.cli import ROOT, cli, recorded, tool

FIGURES = {"class_distribution.png", "samples.png", "samples_augmented.png"}


def test_failed_check_exits_with_1_and_leaves_figures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        for i in range(20):
            pixels = rng.integers(0, 256, (9, 9), np.uint8) * (i != 4)  # one is blank
            path = tmp_path / "images" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    settings = ("data=folder", f"data.root={tmp_path}/images", "data.val_size=8", "seed=1")
    done = tool("data", *settings, "tracking=none", store=tmp_path / "store")
    assert done.returncode == 1, done.stderr
    assert "failed: blank images" in done.stdout
    assert {path.name for path in tmp_path.glob("store/outputs/*/*/*.png")} == FIGURES


def test_checks_are_recorded_as_a_run(store: Path) -> None:
    done = tool("data", "data=mnist5k", store=store)
    assert done.returncode == 0, done.stderr
    (run,) = recorded(store)
    assert run.data.tags["kind"] == "data"
    assert run.info.run_name == "data mnist5k"
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files >= {*FIGURES, "checks.txt"}


def test_settings_of_a_training_run_are_checked(fresh: Path) -> None:
    done = tool("data", "data=mnist5k", "data.val_size=0", "model=vgg", store=fresh)
    assert done.returncode == 2
    assert done.stderr == "error: data.val_size=0: expected a number above 0\n"
    assert not fresh.exists()


SOURCES = """
from mnist_sweep.data import embedded_mnist
from dataclasses import replace

def floats(root):
    arrays = embedded_mnist()
    return replace(arrays, train_images=arrays.train_images / 255)

def broken(root):
    raise KeyError("no such\\ncolumn")
"""


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.source._target_=sources.floats", "train_images uint8 [N, C, H, W], found float64"),
        ("data.source._target_=sources.broken", "data.source=sources.broken failed: KeyError: "),
        ("data.val_size=3", "data.val_size=3: expected at least 10, one image for each class"),
    ],
)
def test_faulty_data_is_one_line_and_leaves_nothing(
    setting: str, expected: str, tmp_path: Path, fresh: Path
) -> None:
    (tmp_path / "sources.py").write_text(SOURCES)
    trusted = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "MNIST_SWEEP_TRUST": "sources.*"}
    done = cli("data=mnist5k", setting, store=fresh, fresh=True, **trusted)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.")
    assert expected in line
    assert not fresh.exists()
