"""Names of runs."""

import re
from typing import Any

import pytest

from mnist_sweep.sweep.trial import Trial
from mnist_sweep.tracking.names import describe, run_name, short


def trial(sweep: str, number: int, **params: Any) -> Trial:
    made = Trial()
    made.sweep, made.number, made.params = sweep, number, params
    return made


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"optimizer.lr": 0.0027, "data.batch_size": 128, "model": "vgg"}, "vgg lr=2.7e-3 bs=128"),
        ({"model": "mlp", "optimizer": "sgd", "seed": 3}, "mlp sgd seed=3"),
        ({"optimizer.weight_decay": 1e-6, "trainer.max_epochs": 8}, "wd=1e-6 epochs=8"),
        ({"data.augment": "affine", "model.batch_norm": True}, "augment=affine batch_norm=True"),
        ({"model.dropout": 0.1, "+head.dropout": 0.2}, "model.dropout=0.1 +head.dropout=0.2"),
        ({"++optimizer.nesterov": "true"}, "nesterov=true"),
        ({}, ""),
    ],
)
def test_describe_says_what_varies_choices_first(params: dict[str, Any], expected: str) -> None:
    assert describe(params) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.00271828, "2.7e-3"),
        (0.001, "1e-3"),
        (0.0831, "0.0831"),
        (0.0, "0"),
        (-1.5e-5, "-1.5e-5"),
        (99.96, "100"),
        (123456.0, "1.2e5"),
        (float("inf"), "inf"),
        (128, "128"),
        (True, "True"),
    ],
)
def test_numbers_are_short(value: object, expected: str) -> None:
    assert short(value) == expected


def test_run_of_a_sweep_is_named_by_sweep_number_and_parameters() -> None:
    assert run_name(trial("night", 3, lr=0.0027), "simple") == "night/3 lr=2.7e-3"
    assert run_name(trial("night", 4), "simple") == "night/4"


def test_long_names_are_cut() -> None:
    many = {f"model.a_long_name_{i}": i for i in range(20)}
    name = run_name(trial("n" * 200, 12, **many), "simple")
    assert name.startswith(f"{'n' * 29}…/12 a_long_name_0=0 ")
    assert name.endswith("…")
    assert len(name) < 100


def test_single_run_is_named_by_model_and_time() -> None:
    assert re.fullmatch(r"vgg \d{4}-\d\d-\d\d \d\d:\d\d", run_name(Trial(), "vgg"))
