"""Secrets in URLs: masked where they are shown, refused where they are spelled out."""

import pytest
from omegaconf import OmegaConf

from mnist_sweep.common.errors import UserError
from mnist_sweep.common.secrets import (
    check_settings,
    check_url,
    mask_override,
    mask_url,
    masked,
)

URLS = [
    ("postgresql://ann:secret@host:5432/db", "postgresql://ann:***@host:5432/db"),
    ("postgresql://ann:secret x/y?z#@host/db?a=b", "postgresql://ann:***@host/db?a=b"),
    ("postgresql://ann:sec@ret@host/db", "postgresql://ann:***@host/db"),
    ("postgresql://host/db?user=ann&password=secret&x=1", "postgresql://host/db?user=ann&password=***"),
    ("postgresql://host/db?PASSWORD=sec&ret", "postgresql://host/db?PASSWORD=***"),
    ("postgresql+psycopg://ann@host/db?sslpassword=secret", None),
    ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dsecret", None),
    ("mssql://host/db;uid=ann;pwd=secret", "mssql://host/db;uid=ann;pwd=***"),
    ("http://ann:secret@host:5000", "http://***@host:5000"),
    ("https://secret@host/mlflow", "https://***@host/mlflow"),
    ("https://se/cret@host/mlflow", "https://***@host/mlflow"),
    ("https://host/mlflow?access_token=secret", "https://host/mlflow?access_token=***"),
    ("https://host/mlflow?api_key=secret", "https://host/mlflow?api_key=***"),
]  # fmt: skip
WITHOUT_SECRETS = [
    "http://127.0.0.1:5000",
    "https://host/mlflow?workspace=a",
    "postgresql://ann@host/db",
    "postgresql://ann@host:5432/db?sslmode=require&passfile=/home/ann/.pgpass",
    "postgresql:///db?host=/var/run",
    "sqlite:////tmp/a/optuna.db",
    "sqlite:////tmp/a:b@c/optuna.db",
    "data.source.token=x",
    "name@example: text",
]


@pytest.mark.parametrize(("url", "shown"), URLS)
def test_secret_of_a_url_is_masked(url: str, shown: str | None) -> None:
    assert mask_url(mask_url(url)) == mask_url(url)
    assert "sec" not in mask_url(url)
    assert "ret" not in mask_url(url)
    assert shown in (None, mask_url(url))
    assert masked({"a": [url, 1]}) == {"a": [mask_url(url), 1]}


@pytest.mark.parametrize("url", WITHOUT_SECRETS)
def test_url_without_a_secret_is_not_changed(url: str) -> None:
    assert mask_url(url) == url
    check_url(OmegaConf.create({"sweep": {"storage": url}}), "sweep.storage")


@pytest.mark.parametrize("url", [url for url, _ in URLS])
def test_spelled_out_secret_is_refused_in_one_line_without_it(url: str) -> None:
    cfg = OmegaConf.create({"sweep": {"storage": url}, "also": "${sweep.storage}"})
    for key in ("sweep.storage", "also"):
        with pytest.raises(UserError, match=rf"^{key}=.*:.* variable of your own") as caught:
            check_url(cfg, key)
        assert "\n" not in str(caught.value)
        assert "sec" not in str(caught.value).replace("secret in a setting", "")


def test_secret_from_the_environment_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHOLE", "postgresql://ann:secret@host/db")
    monkeypatch.setenv("PART", "secret")
    cfg = OmegaConf.create({"a": "${oc.env:WHOLE}", "b": "postgresql://ann:${oc.env:PART}@host/db"})
    check_url(cfg, "a")
    check_url(cfg, "b")
    cfg = OmegaConf.create({"a": "postgresql://ann:secret@${oc.env:PART}/db"})
    with pytest.raises(UserError):
        check_url(cfg, "a")


def test_password_that_databases_would_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would take the rest of the password for a part of the host, and name it in errors."""
    monkeypatch.setenv("WHOLE", "postgresql://ann:sec@ret@host/db")
    with pytest.raises(UserError, match=r"^a=postgresql://ann:\*\*\*@host/db: .*%40$"):
        check_url(OmegaConf.create({"a": "${oc.env:WHOLE}"}), "a")


def test_secret_in_any_setting_is_refused() -> None:
    cfg = OmegaConf.create({"hydra": {"a": URLS[0][0]}, "model": {"a": ["${oc.env:X}", 1, None]}})
    check_settings(cfg)
    cfg.model.a.append(URLS[0][0])
    with pytest.raises(UserError, match=r"^model.a=postgresql://ann:\*\*\*@host"):
        check_settings(cfg)


def test_values_of_secret_keys_are_masked_whatever_they_look_like() -> None:
    settings = {
        "password": "hunter2",
        "db": {"api_key": 1234, "pwd": "", "user": "me"},
        "hf_token": "abc",
        "pad_token": "<pad>",
        "max_tokens": 5,
    }
    assert masked(settings) == {
        "password": "***",
        "db": {"api_key": "***", "pwd": "", "user": "me"},
        "hf_token": "***",
        "pad_token": "<pad>",
        "max_tokens": 5,
    }


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("db.password=hunter2", "db.password=***"),
        ("url=postgresql://u:p@h/x", "url=postgresql://u:***@h/x"),
        ("x=1,2", "x=1,2"),
        ("~x", "~x"),
    ],
)
def test_override_is_masked(override: str, expected: str) -> None:
    assert mask_override(override) == expected
