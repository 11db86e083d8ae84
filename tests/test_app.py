"""The command line. A mistake gets one line that says what to do, exit code 2 and no traceback."""

import time
from pathlib import Path

import pytest

from tests.helpers.cli import SMALL, cli, recorded

FEW = ["data=mnist5k", "data.train_size=100", "trainer.max_epochs=1", "device=cpu"]


def error_of(*arguments: str, store: Path, **env: str) -> str:
    done = cli(*arguments, store=store, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=null"], ["group override must be"]),
        (["data.val_size=4500"], ["val_size=4500", "4500 training images"]),
        (["model=m3", "data.batch_size=33"], ["data.batch_size=33", "one of 100", "batch norm"]),
        (["model=m7", "trainer.resize_from=0.3"], ["resize_from=0.3", "few pixels"]),
        (["trainer.resume=/nowhere"], ["/nowhere/last.pt", "no such checkpoint"]),
        (["data=fashion_mnist", "data.root=/proc/nowhere"], ["cannot write", "/proc/nowhere"]),
    ],
)
def test_setting_that_cannot_work(arguments: list[str], expected: list[str], fresh: Path) -> None:
    message = error_of(*FEW, *arguments, store=fresh)
    assert all(part in message for part in expected), message
    assert not (fresh / "mlflow.db").exists()


def test_full_error_shows_the_traceback(store: Path) -> None:
    done = cli(*FEW, "objective=x", store=store, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "objective=x" in done.stderr


def test_help_is_quick_and_lists_the_groups(fresh: Path) -> None:
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = cli("--help", store=fresh, fresh=True)
        seconds.append(time.monotonic() - started)
        assert done.returncode == 0
    assert "model:" in done.stdout
    assert min(seconds) < 1.5, seconds
    assert not fresh.exists()


def test_damaged_file_is_named_with_both_checksums(store: Path, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte.gz").write_bytes(b"cut short")
    message = error_of("data=mnist", f"data.root={tmp_path}/data", store=store)
    assert "train-images-idx3-ubyte.gz" in message
    assert "f68b3c2dcbeaaa9fbdd348bbdeb94873" in message  # expected
    assert "c1a31ae98fcef3c67493a99ee1901852" in message  # md5 of "cut short"


def test_missing_files_are_an_error_on_demand(store: Path, tmp_path: Path) -> None:
    arguments = ["data=mnist", f"data.root={tmp_path}/none", "data.on_missing=error"]
    # a class that torchvision does not have: nothing is downloaded on a machine with internet either
    message = error_of(*arguments, "data.source.torchvision_class=null", store=store)
    assert "train-images-idx3-ubyte.gz" in message
    assert "data.root" in message


def test_missing_files_fall_back_with_a_loud_warning(store: Path, tmp_path: Path) -> None:
    arguments = [f"data.root={tmp_path}/none", "data.source.torchvision_class=null"]
    done = cli("trainer.max_epochs=1", *arguments, store=store)
    assert done.returncode == 0, done.stderr
    assert "WARNING" in done.stdout
    assert "data=mnist5k" in done.stdout
    (run,) = recorded(store)
    assert run.data.tags["data"] == "mnist5k"


def test_config_of_a_job_is_shown_without_a_run(fresh: Path) -> None:
    done = cli("--cfg", "job", "model=vgg", store=fresh)
    assert done.returncode == 0
    assert "batch_norm: true" in done.stdout
    assert not fresh.exists()


def test_module_of_the_user_is_run_once_trusted(store: Path, tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def net(in_shape, n_classes, width):\n"
        "    layers = nn.Linear(784, width), nn.ReLU(), nn.Linear(width, n_classes)\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
    )
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: my_nets.net\nwidth: 8\n")
    done = cli(
        *SMALL,
        f"hydra.searchpath=[file://{tmp_path}/conf]",
        "model=mine",
        "model.width=16",
        "tracking=none",
        store=store,
        PYTHONPATH=str(tmp_path),
        MNIST_SWEEP_TRUST="my_nets.*",
    )
    assert done.returncode == 0, done.stderr
    assert f"{784 * 16 + 16 + 16 * 10 + 10:,} parameters" in done.stdout


@pytest.mark.mnist
def test_simple_reaches_98_percent_in_one_epoch(store: Path) -> None:
    done = cli("trainer.max_epochs=1", "scheduler=onecycle", "optimizer.lr=3e-3", store=store)
    assert done.returncode == 0, done.stderr
    (run,) = recorded(store)
    assert run.data.metrics["val/accuracy"] >= 0.98
    assert run.inputs.dataset_inputs[0].dataset.name == "mnist"


HOSTILE = {
    "a callback that loads a pickle": (
        "hydra: {callbacks: {evil: {_target_: mnist_sweep.tracking.queries.load_pickle, folder: x}}}",
        "not in the Hydra execution whitelist",
    ),
    "a variable that trusts the configuration": (
        "hydra: {job: {env_set: {MNIST_SWEEP_TRUST: mnist_sweep.*}}}\n"
        "model: {_target_: mnist_sweep.tracking.queries.load_pickle, folder: x}",
        "this code is not trusted",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_configuration_of_a_stranger_runs_only_trusted_code(
    case: str, tmp_path: Path, fresh: Path
) -> None:
    content, expected = HOSTILE[case]
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "evil.yaml"
    file.write_text(f"# @package _global_\ndefaults: [{{override /model: null}}]\n{content}\n")
    done = cli(f"--config-dir={tmp_path}", "experiment=evil", "data=mnist5k", store=fresh)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
