"""The tool `predict` on a model trained here."""

import csv
import json
import os
import re
import signal
from io import StringIO
from pathlib import Path
from subprocess import PIPE

import pytest

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.predict import expand
from tests.helpers.cli import ROOT, run, start, tool
from tests.helpers.pictures import as_file, draw_digit
from tests.helpers.trained import directory, store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with pictures of three digits and a text file."""
    for digit in (0, 1, 7):
        draw_digit(digit).save(tmp_path / f"{digit}=x.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_predict_prints_a_line_for_each_picture_of_a_folder(folder: Path) -> None:
    done = tool("predict", str(folder), store=store())
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [(Path(r["file"]).name[0], r["class"]) for r in rows] == [(d, d) for d in "017"]


def test_predict_prints_json_with_all_probabilities(folder: Path) -> None:
    settings = (f"model={directory()}/best.pt", "format=json", "probabilities=true")
    row = json.loads(tool("predict", *settings, str(folder / "7=x.png"), store=store()).stdout)
    assert row["class"] == "7"
    assert row["probability"] == row["p(7)"]
    assert sum(row[f"p({d})"] for d in range(10)) == pytest.approx(1, abs=1e-3)


def test_predict_names_unreadable_files_and_classifies_the_others(folder: Path) -> None:
    digit = draw_digit(1)
    whole = {form: as_file(digit, form).getvalue() for form in ("png", "avif", "eps", "tiff")}
    contents = {
        "truncated.png": whole["png"][:-60],
        "truncated.tif": whole["tiff"][:-60],
        "avif.png": whole["avif"][:-60],
        "eps.png": whole["eps"],
        "blp.png": b"BLP2" + bytes(range(200)),
        "bomb.png": b"P5 60000 60000 255\n",
        "empty.png": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
    digit.convert("CMYK").save(folder / "folder.png" / "1=cmyk.jpg")
    digit.convert("RGBA").save(folder / "1=animated.gif", save_all=True, append_images=[digit])
    missing = folder / "none.png"
    done = tool("predict", str(folder), str(missing), str(folder / "notes.txt"), store=store())
    assert done.returncode == 1
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [Path(row["file"]).name for row in rows] == [
        *("0=x.png", "1=animated.gif", "1=x.png", "7=x.png", "1=cmyk.jpg"),
    ]
    assert all(row["class"] == Path(row["file"]).name[0] for row in rows)
    errors = dict(re.findall(r"^error: (.+?): (.+)$", done.stderr, re.MULTILINE))
    names = [*contents, "fifo.png", "loop.png", "none.png", "notes.txt"]
    assert {Path(path).name for path in errors} == set(names)
    assert errors[str(missing)] == "no such file"
    assert errors[f"{folder}/fifo.png"] == "not a regular file"
    assert "Traceback" not in done.stderr


def test_predict_takes_the_names_of_files_as_they_are(tmp_path: Path) -> None:
    names = [
        b"${oc.env:HOME}.png",
        b"\\${x}.png",
        b"\xff.png",
        b"[1].png",
        b"store=x.png",
        b"a,'b.png",
    ]
    paths = [os.fsdecode(os.fsencode(tmp_path) + b"/" + name) for name in names]
    for path in paths:
        draw_digit(7).save(path)
    files = [*paths[:4], "store=x.png", paths[5]]
    options = {"cwd": tmp_path, "errors": "surrogateescape", "stdout": PIPE, "stderr": PIPE}
    env = {"PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(ROOT)}
    done = run("predict", *files, f"store={store()}", fresh=True, env=env, **options)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [(row["file"], row["class"]) for row in rows] == [(file, "7") for file in files]


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=rf"{tmp_path}: expected a folder with images \(\.bmp, "):
        expand([str(tmp_path)])
    for paths in ([], [""]):
        with pytest.raises(UserError, match="expected image files"):
            expand(paths)
    assert expand(["x" * 300]) == [Path("x" * 300)]  # an error of this file alone


def test_predict_reads_thousands_of_files(tmp_path: Path) -> None:
    first = tmp_path / "0.png"
    draw_digit(0).resize((40, 40)).save(first)
    for i in range(1, 2000):
        (tmp_path / f"{i}.png").hardlink_to(first)
    done = tool("predict", str(tmp_path), store=store())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2001


def test_predict_ends_silently_with_the_reader_of_its_pipe(folder: Path) -> None:
    files = [str(folder / "1=x.png")] * 2000
    process = start("predict", f"store={store()}", *files, stdout=PIPE, stderr=PIPE)
    assert process.stdout.readline() == "file,class,probability\n"
    process.stdout.close()
    assert process.wait(60) == -signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected image files"),
        (["model=nosuch", "a.png"], "model=nosuch: expected a run's id"),
        (["model=models:/nosuch@champion", "a.png"], "no model models:/nosuch@champion"),
        ([f"model={'0' * 32}", "a.png"], f"no model runs:/{'0' * 32}/model"),
        (["model=conf", "a.png"], "is not the directory of a run"),
    ],
)
def test_mistake_is_one_line_on_stderr(arguments: list[str], expected: str) -> None:
    done = tool("predict", *arguments, store=store())
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
