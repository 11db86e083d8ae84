"""Passwords and tokens in the URLs of databases and servers.

Settings are recorded in many places: the shell's history, Hydra's files, the study, MLflow. Therefore no
setting may spell out a secret. A URL that contains one comes from an environment variable, as
`${oc.env:NAME}`. Hydra's files and the printed commands then hold the variable's name, and `mask_url`
hides the value in everything that is shown or recorded.
"""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_sweep.common.errors import UserError

_FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}")
_NAMES = "password|passwd|passphrase|pwd|token|secret|api_?key|access_?key|signature|odbc_connect"
_SECRETS = (
    (re.compile(r"(https?://).+@", re.DOTALL | re.IGNORECASE), r"\1***@"),
    # the user ends at the first colon or slash, as SQLAlchemy reads it; the password may contain anything
    (re.compile(r"(://[^:/]*:).+@", re.DOTALL), r"\1***@"),
    # parameters of the query, and all that follows: a password may contain & or ;
    (re.compile(rf"(://.*?(?:{_NAMES})\s*=).+", re.DOTALL | re.IGNORECASE), r"\1***"),
)
# Keys whose values are secrets, whatever they look like. Not every token is one: `pad_token`.
_SECRET_KEY = re.compile(
    r"(.*[_.-])?(password|passwd|passphrase|pwd|secret|(secret|api|access|private)_?key"
    r"|(api|access|auth|bearer|hf|refresh|secret)_?token)|token",
    re.IGNORECASE,
)


def mask_url(url: str) -> str:
    """Replace the password or token in a URL with ***. Other text than a URL stays as it is."""
    for pattern, replacement in _SECRETS:
        url = pattern.sub(replacement, url)
    return url


def mask_in(text: str, url: str) -> str:
    """Mask a URL wherever it occurs in a text, such as the message of an error."""
    return text.replace(url, mask_url(url))


def mask_override(override: str) -> str:
    """Mask the value of an override, key=value."""
    key, equals, value = override.partition("=")
    return f"{key}={masked({key.rpartition('.')[2]: value}).popitem()[1]}" if equals else override


def masked(value: Any) -> Any:
    """Mask every string in a tree of dictionaries and lists, and the values of keys such as `password`."""
    if isinstance(value, dict):
        return {
            key: "***" if item and _is_secret(key, item) else masked(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [masked(item) for item in value]
    return mask_url(value) if isinstance(value, str) else value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str | int) and _SECRET_KEY.fullmatch(str(key)) is not None


def check_settings(cfg: DictConfig) -> None:
    """Raise UserError if a setting spells out a secret. Hydra's own settings are left out."""

    def check(key: str, node: Any) -> None:
        if isinstance(node, dict):
            for name, item in node.items():
                check(f"{key}.{name}" if key else str(name), item)
        elif isinstance(node, list):
            for item in node:
                check(key, item)
        elif isinstance(node, str):
            refuse_secret(key, _FROM_ENVIRONMENT.sub("", node))

    for name, node in OmegaConf.to_container(cfg, resolve=False).items():  # type: ignore[union-attr]
        if name != "hydra":
            check(str(name), node)


def check_url(cfg: DictConfig, key: str) -> None:
    """Check a setting that is a URL, or null.

    Raises:
        UserError: the setting spells out a secret, or its password contains an @.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    written = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[call-overload,index]
    if written is None:
        return
    value = str(node[name])
    spelled_out = _FROM_ENVIRONMENT.sub("", written)
    if "${" in spelled_out:  # of another setting, which would hold the secret
        spelled_out = value
    refuse_secret(key, spelled_out)
    if re.search(r"://[^:/]*:[^@]*@[^?]*@", value):
        raise UserError(f"{key}={mask_url(value)}: write an @ in the password as %40")


def refuse_secret(key: str, value: str) -> None:
    """Raise UserError if a value of a setting is a URL that contains a secret."""
    if mask_url(value) == value:
        return
    is_server = value.lower().startswith(("http://", "https://"))
    variables = (
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if is_server
        else "PGPASSWORD or ~/.pgpass"
    )
    raise UserError(
        f"{key}={mask_url(value)}: a secret in a setting would be recorded; expected it in {variables}, "
        f"or the URL in a variable of your own as {key}='${{oc.env:NAME}}'"
    )
