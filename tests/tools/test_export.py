"""The tool `export` on a model trained here."""

from pathlib import Path

import pytest
import torch

from tests.helpers.cli import tool
from tests.helpers.pictures import draw_digit
from tests.helpers.trained import run_id, store


@pytest.mark.parametrize(
    ("form", "name"), [("pt2", "m.pt2"), ("onnx", "m.onnx"), ("torchscript", "m.pt")]
)
def test_exported_file_predicts_the_same(form: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "it's, a folder" / name
    done = tool("export", f"format={form}", f"output={path}", f"model={run_id()}", store=store())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logits of 1000 images differ by at most" in done.stdout
    assert path.stat().st_size > 1e6
    if form == "pt2":
        draw_digit(7).save(tmp_path / "7.png")
        arguments = (f"model={path}", "trust=true", f"{tmp_path}/7.png")
        lines = tool("predict", *arguments, store=store()).stdout
        assert lines.splitlines()[1].split(",")[1] == "7"
    if form == "torchscript":
        alone = torch.jit.load(str(path))
        assert alone(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outputs = {tmp_path: "is a folder", tmp_path / "file" / "m.pt2": "cannot create its folder"}
    for output, expected in outputs.items():
        done = tool("export", "format=pt2", f"output={output}", store=store())
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: output={output}")
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1
