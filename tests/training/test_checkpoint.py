"""Checkpoints that fit, and those that do not."""

import contextlib
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mnist_sweep.common.errors import UserError
from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.tracker import Tracker
from mnist_sweep.training import checkpoint
from mnist_sweep.training.config import TrainerConfig
from mnist_sweep.training.run import resume, train
from tests.helpers.cli import ROOT
from tests.helpers.configs import composed
from tests.helpers.hostile import Marked
from tests.helpers.toy import N_TRAIN, MemoryTracker, toy_trainer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    toy_trainer(tmp_path / "run").fit(MemoryTracker(), Trial())
    return tmp_path / "run"


def test_restore_refuses_another_model(run: Path, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 2))
    with pytest.raises(UserError, match=f"cannot resume from {run}: its configuration"):
        toy_trainer(tmp_path / "new", model=other).restore(run)


def test_restore_refuses_other_data(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    checkpoint.save(run / checkpoint.LAST, {**saved, "data": "another digest"})
    with pytest.raises(UserError, match="other data than toy"):
        toy_trainer(tmp_path / "new").restore(run)


def test_restore_refuses_a_damaged_file(run: Path, tmp_path: Path) -> None:
    last = run / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        toy_trainer(tmp_path / "new").restore(run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "3"),
        ("epoch", 7),
        ("best_score", None),
        ("seconds", [1.0]),
        ("pruned", 0),
        ("history", {}),
        ("history", [{"val/loss": "low"}] * 3),
    ],
)
def test_restore_refuses_a_field_of_another_type(
    field: str, value: Any, run: Path, tmp_path: Path
) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    changed = {**saved, "state": {**saved["state"], field: value}}
    checkpoint.save(run / checkpoint.LAST, changed)
    with pytest.raises(UserError, match=f"cannot resume from {run}"):
        toy_trainer(tmp_path / "new").restore(run)


def test_restore_within_an_epoch_refuses_another_batch_size(run: Path, tmp_path: Path) -> None:
    partial = {
        "order": torch.arange(N_TRAIN),
        "losses": torch.zeros(4),
        "correct": torch.tensor(0),
        "step": 1,
        "seconds": 1.0,
    }
    saved = checkpoint.load(run / checkpoint.LAST)
    for name, value in (("step", 5), ("step", "1"), ("order", torch.zeros(N_TRAIN).long())):
        wrong = {**partial, name: value}
        checkpoint.save(run / checkpoint.LAST, {**saved, "partial": wrong})
        with pytest.raises(UserError, match=f"cannot resume from {run}"):
            toy_trainer(tmp_path / "new").restore(run)
    checkpoint.save(run / checkpoint.LAST, {**saved, "partial": partial})
    toy_trainer(tmp_path / "new").restore(run)
    with pytest.raises(UserError, match="stopped within an epoch"):
        toy_trainer(tmp_path / "new", batch_size=8).restore(run)


def test_restore_on_another_kind_of_device_warns_and_draws_other_numbers(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    cuda = {"device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)}  # CUDA's format
    checkpoint.save(run / checkpoint.LAST, saved | cuda)
    resumed = toy_trainer(tmp_path / "new", TrainerConfig(max_epochs=4))
    resumed.restore(run)
    assert "ran on cuda: the results will not be bit-identical" in caplog.text
    assert resumed.fit(MemoryTracker(), Trial()).epoch == 4


def test_checkpoint_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, on_disk = tmp_path / checkpoint.LAST, []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        on_disk.append(("folder" if is_folder else "file", path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    checkpoint.save(path, {"a": 1})
    assert on_disk == [("file", False), ("folder", True)]


def test_restore_in_the_same_directory_keeps_the_best_model(run: Path) -> None:
    best = checkpoint.load_best(run)
    toy_trainer(run).restore(run)
    assert checkpoint.load_best(run).epoch == best.epoch


def test_checkpoint_of_the_first_version_resumes(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests" / "helpers" / "store-0.1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    old = tmp_path / "store" / "outputs" / "single"
    recorded = (old / ".hydra" / "overrides.yaml").read_text()
    overrides = [line.removeprefix("- ") for line in recorded.splitlines()]
    changes = "trainer.max_epochs=2", f"trainer.resume={old}"
    train(composed(*overrides, *changes), tmp_path / "new", Tracker(), Trial())
    before, after = (checkpoint.load(path / checkpoint.LAST) for path in (old, tmp_path / "new"))
    assert before.keys() == after.keys()
    assert before["state"]["epoch"] == 1
    assert after["state"]["history"][0] == before["state"]["history"][0]
    assert after["state"]["epoch"] == 2
    assert checkpoint.load(old / checkpoint.BEST).keys() == vars(checkpoint.load_best(old)).keys()


# Anything that a checkpoint file can hold.
CONTENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=5)
    | st.sampled_from([torch.ones(2), torch.zeros(1, 1, 3, 3).long(), torch.empty(0)]),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
)  # fmt: skip
FAST = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@FAST
@given(content=CONTENTS)
def test_file_of_anything_is_no_best_model(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / checkpoint.BEST)
    with pytest.raises(UserError):
        checkpoint.load_best(tmp_path)


@FAST
@given(field=st.sampled_from(["model", "epoch", "classes", "shape", "data"]), content=CONTENTS)
def test_best_model_with_another_field_is_refused_or_has_its_type(
    field: str, content: Any, tmp_path: Path
) -> None:
    good = {"model": {"a": torch.ones(1)}, "epoch": 1, "classes": ("a",), "shape": (1, 4, 4)}
    torch.save({**good, "data": "d", field: content}, tmp_path / checkpoint.BEST)
    with contextlib.suppress(UserError):
        best = checkpoint.load_best(tmp_path)
        assert len(best.shape) == 3
        assert all(isinstance(name, str) for name in best.classes)
        assert all(isinstance(tensor, torch.Tensor) for tensor in best.model.values())


@FAST
@given(data=st.data())
def test_damaged_file_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / checkpoint.BEST
    checkpoint.save(path, {"model": {"a": torch.ones(300)}, "epoch": 1})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with pytest.raises(UserError):
        checkpoint.load_best(tmp_path)


@FAST
@given(data=st.data(), content=CONTENTS)
def test_restore_of_another_content_works_or_is_refused(
    data: st.DataObject, content: Any, tmp_path: Path
) -> None:
    if not (tmp_path / "run").exists():
        toy_trainer(tmp_path / "run").fit(MemoryTracker(), Trial())
        (tmp_path / "run" / checkpoint.LAST).rename(tmp_path / checkpoint.LAST)
    saved = checkpoint.load(tmp_path / checkpoint.LAST)
    key = data.draw(st.sampled_from(sorted(saved)))
    if isinstance(saved[key], dict) and saved[key] and data.draw(st.booleans()):
        inner = data.draw(st.sampled_from(sorted(saved[key], key=str)))
        content = {**saved[key], inner: content}
    torch.save({**saved, key: content}, tmp_path / "run" / checkpoint.LAST)
    with contextlib.suppress(UserError):
        toy_trainer(tmp_path / "new").restore(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((".hydra/config.yaml", text) for text in ("", "- 1", "a: [", "text", "\0", "a: ${b}")),
        *(("last.pt", text) for text in ("", "a picture", "PK\3\4")),
    ],
)
def test_resume_of_a_directory_with_a_broken_file(
    name: str, content: str, run: Path, tmp_path: Path
) -> None:
    (run / ".hydra").mkdir()
    (run / name).write_text(content)
    with pytest.raises(UserError) as raised:
        resume(composed("data=mnist5k"), run, toy_trainer(tmp_path / "new"))
    assert str(run) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_resume_of_something_else(run: Path, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    shutil.copy(run / checkpoint.BEST, tmp_path / "empty" / checkpoint.LAST)
    expected = {
        tmp_path / "picture.png": "is a file: expected the directory of a run",
        run / checkpoint.LAST: "is a file: expected the directory of a run",
        tmp_path / "nowhere": "no such checkpoint",
        tmp_path / "empty": "cannot resume",
    }
    for path, message in expected.items():
        with pytest.raises(UserError, match=message):
            resume(composed(), path, toy_trainer(tmp_path / "new"))


def test_pickle_runs_no_code_and_the_error_does_not_say_how_to(tmp_path: Path) -> None:
    for new_format in (True, False):
        torch.save(
            {"model": Marked(tmp_path / "ran")},
            tmp_path / checkpoint.BEST,
            _use_new_zipfile_serialization=new_format,
        )
        with pytest.raises(UserError, match=r"best\.pt is damaged, or holds more than tensors"):
            checkpoint.load_best(tmp_path)
        assert not (tmp_path / "ran").exists()


def test_restore_refuses_a_file_without_a_key(run: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(run / checkpoint.LAST)
    for key in saved.keys() - {"average", "scaler"}:  # which this run lacks
        torch.save({k: v for k, v in saved.items() if k != key}, run / checkpoint.LAST)
        with pytest.raises(UserError, match=f"cannot resume from {run}: .*'{key}'"):
            toy_trainer(tmp_path / "new").restore(run)
