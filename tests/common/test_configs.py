import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mnist_sweep.common.configs import flatten, plain_node, read_config
from mnist_sweep.common.errors import UserError


def test_flatten_resolves_and_keeps_empty_values() -> None:
    flat = flatten(OmegaConf.create({"a": {"b": 1, "c": "${a.b}", "d": {}, "e": None}}))
    assert flat == {"a.b": "1", "a.c": "1", "a.d": "{}", "a.e": "None"}


def test_plain_node_resolves_references_and_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_SWEEP_DATA", "/data")
    monkeypatch.setenv("TOKEN", "hidden")
    data = {"root": "${oc.env:MNIST_SWEEP_DATA,data}", "split_seed": "${seed}", "classes": None}
    cfg = OmegaConf.create({"seed": 3, "data": data, "tracking": {"uri": "${oc.env:TOKEN}"}})
    assert plain_node(cfg, "data", "x") == {"root": "/data", "split_seed": 3, "classes": None}


@pytest.mark.parametrize(
    "root",
    [
        "${oc.env:TOKEN}",
        "http://h/${oc.env:TOKEN}",
        "${other}",
        "${oc.env:${name}}",
        "${oc.env:MNIST_SWEEP_X,${oc.env:TOKEN}}",
        "${oc.decode:'${oc.env:TOKEN}'}",
        "${${resolver}:TOKEN}",
        "${resolver.of.yours:1}",
        "${missing}",
        "${",
        "???",
    ],
)
def test_plain_node_calls_no_resolver(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hidden")
    path = tmp_path / "config.yaml"
    rest = {"other": "${oc.env:TOKEN}", "name": "TOKEN", "resolver": "oc.env"}
    path.write_text(json.dumps({"data": {"x": [{"root": root}]}, **rest}))
    with pytest.raises(UserError) as raised:
        plain_node(read_config(path), "data", path)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a: [",
        b"- 1",
        b"text",
        b"\xff\xfe\x00",
        b"!!python/object/apply:os.system [touch ran]",
        b"a: !!python/name:os.system",
        b"[" * 5000,
        b"a: 1\na: 2",
        b"a: &x [1]\nmodel: {b: *x}",
    ],
)
def test_file_that_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        plain_node(read_config(path), "model", path)
    assert str(raised.value).startswith(str(path))
    assert len(str(raised.value).splitlines()) == 1
    assert not Path("ran").exists()


@pytest.mark.parametrize("model", [None, 1, "text", ["a"]])
def test_node_of_another_kind_is_refused(model: object) -> None:
    with pytest.raises(UserError, match="no usable `model`"):
        plain_node(OmegaConf.create({"model": model}), "model", "x.yaml")


def test_configuration_that_contains_itself_or_unfolds_is_refused() -> None:
    itself: dict[str, Any] = {}
    itself["model"] = itself
    unfolding: dict[str, Any] = {"model": {}}
    for _ in range(30):
        unfolding = {"model": [unfolding, unfolding]}
    for cfg in (itself, unfolding):
        with pytest.raises(UserError, match="more than 10000 values"):
            plain_node(cfg, "model", "x.yaml")
