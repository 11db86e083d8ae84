"""Values as overrides: what a task receives is what the command says."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution

from mnist_sweep.sweep.overrides import from_text, to_text
from mnist_sweep.sweep.space import parse
from tests.helpers import cli
from tests.helpers.engine import run, trials
from tests.helpers.settings import sweep_settings

# the characters that mean something to Hydra, to OmegaConf or to a shell
texts = st.text() | st.text(alphabet="ab1 '\"\\,${}[]():=\t\n") | st.sampled_from(["true", "null"])
# no subnormal numbers: libraries that other tests import switch them off
floats = st.floats(allow_nan=False, allow_subnormal=False)
scalars = st.none() | st.booleans() | st.integers() | floats | texts
names = st.from_regex(r"[a-z_]+", fullmatch=True)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=5
)


def choices(*arguments: str) -> Any:
    space = parse(sweep_settings(), list(arguments))
    (distribution,) = space.distributions.values()
    assert isinstance(distribution, CategoricalDistribution)
    indices = [distribution.to_internal_repr(choice) for choice in distribution.choices]
    return tuple(distribution.to_external_repr(index) for index in indices)  # from the study


@given(values)
@settings(deadline=None)
def test_value_survives_its_text(value: Any) -> None:
    again = from_text(to_text(value))
    assert repr(again) == repr(value)  # 1, 1.0 and True are equal


@given(st.lists(values, min_size=2, max_size=4, unique_by=repr))
@settings(deadline=None)
def test_value_survives_a_list_of_choices_and_the_study(written: list[Any]) -> None:
    drawn = choices(f"x={','.join(to_text(value) or repr('') for value in written)}")
    received = [parse_override(f"x={choice}") for choice in drawn]
    assert repr(received) == repr(written)


@given(st.lists(texts, min_size=2, max_size=4, unique=True))
@settings(deadline=None)
def test_string_survives_the_function_choice(written: list[str]) -> None:
    drawn = choices(f"x=choice({','.join(to_text(value) or repr('') for value in written)})")
    assert [parse_override(f"x={choice}") for choice in drawn] == written


def parse_override(override: str) -> Any:
    """What Hydra reads, which takes `True` for a boolean like `true`."""
    return from_text(override.removeprefix("x="))


@pytest.mark.parametrize(
    ("argument", "stored"),
    [
        ("x=adam,sgd", ("adam", "sgd")),
        ("x=choice(adam,'sgd')", ("adam", "sgd")),
        ("x='1','a,b','c'", ("'1'", "'a,b'", "'c'")),
        ("x=2,2.5,true,null", (2, 2.5, True, "null")),
        ("x=[1,a],[],{a:1}", ("[1,a]", "[]", "{a:1}")),
        ("x=a b,/tmp/x,1e-3x", ("a b", "/tmp/x", "1e-3x")),
        ("x=choice('','a')", ("", "a")),
        ("x=true,false", (True, False)),
    ],
)
def test_study_of_an_earlier_version_has_the_same_choices(
    argument: str, stored: tuple[Any, ...]
) -> None:
    assert choices(argument) == stored


WRITTEN = "'1',1,1.0,true,'true','a,b','it\\'s','{a}','','ü $x',[1,'2'],{a:'1'},null,2"
WANTED = [
    "1",
    1,
    1.0,
    True,
    "true",
    "a,b",
    "it's",
    "{a}",
    "",
    "ü $x",
    [1, "2"],
    {"a": "1"},
    None,
    2,
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder whose name means something to Hydra."""
    (tmp_path / "it's, a [b]={c} $d").mkdir()
    return tmp_path / "it's, a [b]={c} $d"


def received(directory: Path) -> Any:
    """The value of `v` with which a task ran."""
    config = OmegaConf.load(directory / ".hydra" / "config.yaml")
    return OmegaConf.to_container(config)["v"]  # type: ignore[index, call-overload]


@pytest.mark.slow
def test_grid_in_a_folder_with_a_difficult_name_passes_values_on(store: Path) -> None:
    code, out = run(f"+v={WRITTEN}", "epochs=0", "sweep.name=g", store=store)
    assert code == 0, out
    directory = store / "outputs" / "g"
    assert repr([received(directory / str(i)) for i in range(len(WANTED))]) == repr(WANTED)


@pytest.mark.slow
def test_resumed_search_and_its_printed_command_pass_values_on(store: Path, tmp_path: Path) -> None:
    space = ["+v=choice('1','true','a,b')", "x=interval(1,2)", "epochs=0", "sweep.name=s"]
    for n_trials in (3, 6):
        code, out = run(*space, f"sweep.n_trials={n_trials}", store=store)
        assert code == 0, out
    directory = store / "outputs" / "s"
    drawn = [received(directory / str(i)) for i in range(6)]
    assert set(drawn) <= {"1", "true", "a,b"}
    assert len(set(drawn)) > 1
    best = max(trials(store, "s"), key=lambda trial: trial.value or 0)
    (command,) = [line for line in out.splitlines() if "train it again: " in line]
    again = shlex.split(command.partition("train it again: ")[2])
    assert again[:3] == ["python", "-m", "tests.helpers.apps.sleeper"]
    done = cli.run(*again[3:], f"hydra.run.dir={tmp_path}/again", module=again[2])
    assert done.returncode == 0, done.stderr
    assert received(tmp_path / "again") == drawn[best.number]


def test_folder_that_hydra_would_interpolate_is_refused(tmp_path: Path) -> None:
    code, out = run("x=1,2", f"hydra.sweep.dir='{tmp_path}/\\${{x}}'", store=tmp_path)
    assert code != 0
    assert f"hydra.sweep.dir={tmp_path}/${{x}}: " in out
    assert "expected a path without ${" in out
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
