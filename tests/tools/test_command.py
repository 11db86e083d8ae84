"""The command line of the tools."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_sweep.common.errors import UserError
from mnist_sweep.tools.command import TOOLS, compose_config, list_tools, run_tool, split_arguments
from tests.helpers.cli import ROOT, environment, run, tool

PROGRAM = ["python", "-m", "mnist_sweep"]


def test_tools_are_listed_with_a_line_each() -> None:
    done = run("tools")
    assert done.returncode == 0, done.stderr
    assert done.stdout == list_tools(PROGRAM) + "\n"
    names = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert names == list(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_help_shows_the_tools_own_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool(name, ["--help"], PROGRAM)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m mnist_sweep {name} ")
    settings = [line.strip().partition("=")[0] for line in lines if line[:2] == "  " != line[2:4]]
    assert settings == [key for key in TOOLS[name].settings if key != "files"]
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize("name", TOOLS)
def test_cfg_prints_the_configuration(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool(name, ["--cfg", "store=/tmp/it's, a store"], PROGRAM)
    printed = capsys.readouterr().out
    assert "store: /tmp/it's, a store\n" in printed
    assert "hydra:" not in printed


def test_help_starts_without_torch_and_creates_nothing(fresh: Path) -> None:
    code = (
        "import sys; from mnist_sweep.app import main; sys.argv[1:] = ['predict', '--help']; main();"
        "assert not {'torch', 'mlflow', 'optuna', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(MNIST_SWEEP_STORE=str(fresh)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Classify image files." in done.stdout
    assert not fresh.exists()


@pytest.mark.parametrize("text", ["it's", "a, b", 'say "x"', "[x]", "a=b", "\\", "$x", "x # y"])
def test_names_are_taken_as_typed(text: str) -> None:
    overrides, texts = split_arguments(
        TOOLS["predict"], [f"model={text}", f"store={text}", "format=json"]
    )
    assert overrides == ["format=json"]
    cfg, _ = compose_config("predict", overrides, texts)
    assert (cfg.source, cfg.store) == (text, text)


def test_cfg_names_the_model_as_the_command_line_does(capsys: pytest.CaptureFixture[str]) -> None:
    run_tool("predict", ["--cfg", "model=it's, x"], PROGRAM)
    assert "model: it's, x\n" in capsys.readouterr().out


def test_lists_are_separated_by_commas() -> None:
    for argument in ("models=simple,it's", "models=[simple, it's]"):
        cfg, _ = compose_config("demo", *split_arguments(TOOLS["demo"], [argument]))
        assert cfg.models == ["simple", "it's"]


def test_null_is_the_default_of_a_name() -> None:
    cfg, _ = compose_config("predict", *split_arguments(TOOLS["predict"], ["model=null"]))
    assert cfg.source is None


def test_arguments_without_a_key_are_files_of_predict(tmp_path: Path) -> None:
    (tmp_path / "a=b.png").touch()
    files = ["it's, one.png", str(tmp_path / "a=b.png"), "folder"]
    overrides, texts = split_arguments(TOOLS["predict"], ["format=json", *files, "seed=1"])
    assert overrides == ["format=json", "seed=1"]
    cfg, _ = compose_config("predict", overrides, texts)
    assert cfg.files == files


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("evaluate modle=x", "modle: no such setting (did you mean 'model'?); there are data, "),
        ("evaluate photo.png", "photo.png: expected key=value"),
        ("evaluate data=mnits", "data=mnits: no such choice (did you mean 'mnist'?)"),
        ("evaluate tracking.urii=x", "tracking.urii: no such key (did you mean 'uri'?)"),
        ("evaluate -m seed=1,2", "unrecognized arguments: -m; "),
        ("predict format=xml a.png", "format=xml: "),
        ("predict seed=[ a.png", "seed=[: cannot be parsed; put a value into quotes: "),
        ("promote model=x", "model: no such setting; there are data, force, "),
        ("ui prot=1", "prot: no such setting (did you mean 'port'?)"),
        ("ui port=x", "port=x: "),
        ("data data.nosuch=1", "data.nosuch: no such key"),
    ],
)
def test_wrong_argument_is_an_error(command: str, expected: str) -> None:
    name, *arguments = shlex.split(command)
    with pytest.raises(UserError) as raised:
        run_tool(name, arguments, PROGRAM)
    assert str(raised.value).startswith(expected)


def test_error_is_one_line_and_exit_code_2(fresh: Path) -> None:
    done = tool("evaluate", "modle=x", store=fresh)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: modle: no such setting")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.png"],
        ["predict", f"model={'0' * 32}", "a.png"],
        ["evaluate", "model=models:/none@champion"],
        ["demo", "models=simple"],
        ["promote"],
        ["export"],
        ["ensemble", "sweep=s"],
        ["report"],
    ],
)
def test_missing_store_is_an_error_and_not_created(arguments: list[str], fresh: Path) -> None:
    name, *rest = arguments
    done = tool(name, *rest, store=fresh)
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not exist: no " in done.stderr
    assert "python -m mnist_sweep " in done.stderr
    assert not fresh.exists()


def test_failure_inside_a_tool_shows_its_traceback(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mnist_sweep import app\n"
        "from mnist_sweep.tools import report\n"
        "report.run = lambda cfg, overrides: int('x')\n"
        "sys.argv[1:] = ['report']\n"
        "app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ValueError: invalid literal" in done.stderr


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("foo://x", "MLflow cannot open foo://x: "),
        ("http://127.0.0.1:9", "no MLflow server answers at tracking.uri=http://127.0.0.1:9 "),
    ],
)
@pytest.mark.parametrize("name", ["evaluate", "promote", "ensemble"])
def test_store_that_does_not_open_is_an_error(
    name: str, uri: str, expected: str, fresh: Path
) -> None:
    arguments = [f"tracking.uri={uri}", *(["sweep=s"] if name == "ensemble" else [])]
    done = tool(name, *arguments, store=fresh)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {expected}")
    assert len(done.stderr.splitlines()) == 1
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("word", "hint"), [("predikt", " (did you mean 'predict'?)"), ("nothing", "")]
)
def test_word_that_is_no_tool_is_an_error(word: str, hint: str, fresh: Path) -> None:
    done = run(word, env={"MNIST_SWEEP_STORE": str(fresh)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {word}: no such tool{hint}; there are predict, ")
    assert len(done.stderr.splitlines()) == 1
    assert not fresh.exists()
