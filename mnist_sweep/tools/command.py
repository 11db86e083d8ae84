"""The command line of the tools: parse the arguments, compose the configuration, run the tool."""

import argparse
import dataclasses
import importlib
import json
import logging
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mnist_sweep import config
from mnist_sweep.common.config_errors import explain
from mnist_sweep.common.errors import UserError, did_you_mean
from mnist_sweep.common.rules import problems
from mnist_sweep.common.secrets import check_settings
from mnist_sweep.tools import config as schemas


class Tool(NamedTuple):
    """A tool. Its module has a function `run(cfg, overrides)`, and may import torch and MLflow."""

    module: str
    schema: type  # its docstring and its fields are the tool's help
    usage: str = "[key=value ...]"
    config: str = ""  # file under conf/; by default the tool's name

    @property
    def settings(self) -> dict[str, "dataclasses.Field[Any]"]:
        """The fields of the schema by their names on the command line, the tool's own first."""
        fields = {field.name: field for field in dataclasses.fields(self.schema)}
        names = [
            name for cls in self.schema.__mro__ for name in vars(cls).get("__annotations__", ())
        ]
        return {ALIASES.get(name, name): fields[name] for name in names}


_MODEL = "[model=MODEL] [key=value ...]"
TOOLS = {
    "predict": Tool("predict", schemas.PredictConfig, f"{_MODEL} FILE_OR_FOLDER ..."),
    "evaluate": Tool("evaluate", schemas.EvaluateConfig, f"[data=DATASET] {_MODEL}"),
    "demo": Tool("demo.command", schemas.DemoConfig, f"[models=TYPE,TYPE] {_MODEL}"),
    "export": Tool("export", schemas.ExportConfig, f"[format=FORMAT] {_MODEL}"),
    "promote": Tool("promote", schemas.PromoteConfig),
    "ensemble": Tool("ensemble", schemas.EnsembleConfig, "sweep=NAME | runs=ID,ID [key=value ...]"),
    "data": Tool("data", schemas.CheckDataConfig, "[data=DATASET] [key=value ...]", "config"),
    "report": Tool("report", schemas.ReportConfig, "[sweep=NAME] [key=value ...]"),
    "ui": Tool("ui", schemas.UiConfig, "[sweep=NAME,NAME] [key=value ...]"),
}
ALIASES = {"source": "model"}  # {setting: its name on the command line}; `model` is a config group


def list_tools(program: Sequence[str]) -> str:
    """Return the list of the tools with one line each. `program` is the command without arguments."""
    width = max(map(len, TOOLS))
    summaries = {name: _doc(tool).splitlines()[0] for name, tool in TOOLS.items()}
    lines = [f"  {name:<{width}}  {summary}" for name, summary in summaries.items()]
    return "\n".join([f"usage: {shlex.join(program)} TOOL [arguments]", "", *lines])


def run_tool(name: str, arguments: Sequence[str], program: Sequence[str]) -> None:
    """Run a tool of TOOLS with the arguments that follow its name on the command line.

    Raises:
        UserError: the arguments do not compose a configuration, or the tool cannot work with it.
    """
    tool = TOOLS[name]
    parser = _Parser(prog=f"{shlex.join(program)} {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--cfg", action="store_true")
    parser.add_argument("arguments", nargs="*")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.help:
        print(_help(name, tool, parser.prog))
        return
    overrides, texts = split_arguments(tool, parsed.arguments)
    cfg, _ = compose_config(tool.config or name, overrides, texts)
    if parsed.cfg:
        shown = {ALIASES.get(str(k), str(k)): node for k, node in cfg.items_ex(resolve=False)}
        print(OmegaConf.to_yaml(shown), end="")
        return
    check_settings(cfg)
    if found := [problem for problem in problems(cfg) if not _is_name_of_a_file(problem)]:
        raise UserError("; ".join(map(_with_alias, found)))
    _log_to_stdout()
    module = importlib.import_module(f"mnist_sweep.tools.{tool.module}")
    module.run(cfg, overrides)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the usage")


def split_arguments(
    tool: Tool, arguments: Sequence[str]
) -> tuple[list[str], dict[str, str | list[str] | None]]:
    """Split arguments into overrides in Hydra's grammar and settings of plain text.

    A setting whose type is text takes the argument as typed, so that names and paths may contain
    quotes, commas and spaces. A list of text is separated by commas.
    """
    types, settings = get_type_hints(tool.schema), tool.settings
    texts: dict[str, str | list[str] | None] = {}
    overrides, files = [], []
    for argument in arguments:
        name, is_setting, value = argument.partition("=")
        key = settings[name].name if name in settings else ""
        if "files" in settings and (not is_setting or Path(argument).exists()):
            files.append(argument)
        elif is_setting and types.get(key) in (str, str | None):
            texts[key] = None if value == "null" and types[key] is not str else value
        elif is_setting and types.get(key) == list[str]:
            names = value.removeprefix("[").removesuffix("]").split(",")
            texts[key] = [each.strip() for each in names if each.strip()]
        else:
            _check_override(tool, argument)
            overrides.append(argument)
    if files:
        texts["files"] = files
    return overrides, texts


def _check_override(tool: Tool, argument: str) -> None:
    """Raise UserError if an argument does not override one of the tool's settings."""
    if "=" not in argument and not argument.startswith("~"):
        raise UserError(f"{argument}: expected key=value")
    root = re.split(r"[=.@]", argument.lstrip("+~"))[0]
    if not tool.config and root not in (*tool.settings, "hydra"):
        hint = did_you_mean(root, tool.settings)
        raise UserError(f"{root}: no such setting{hint}; there are {', '.join(tool.settings)}")


def compose_config(
    name: str, overrides: list[str], texts: dict[str, str | list[str] | None]
) -> tuple[DictConfig, DictConfig]:
    """Return the configuration, and the choices of its config groups."""
    try:
        with initialize_config_dir(str(config.CONF_DIR)):
            cfg = compose(name, overrides, return_hydra_config=True)
        choices = cfg.hydra.runtime.choices
        with open_dict(cfg):
            del cfg["hydra"]
        for key, value in texts.items():
            # the URL of a database may come from a variable
            cfg[key] = value if key == "storage" else _literal(value)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(explain(error)) from error
    return cfg, choices


def _is_name_of_a_file(problem: str) -> bool:
    """Whether a problem is that the name of a file to read is not UTF-8, which it need not be."""
    return problem.startswith("files") and problem.endswith("expected text in UTF-8")


def _with_alias(problem: str) -> str:
    """Name a setting in a message as the command line does."""
    return re.sub(r"^\w+", lambda key: ALIASES.get(key[0], key[0]), problem)


def _literal(value: str | list[str] | None) -> Any:
    """Escape what OmegaConf would interpolate: a file may be named ${oc.env:HOME}."""
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return None if value is None else re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def _help(name: str, tool: Tool, program: str) -> str:
    """Return usage, description and settings. A setting's line has its default and its comment."""
    cfg, chosen = compose_config(tool.config or name, [], {})
    defaults = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(defaults, dict)
    lines = []
    for key, field in tool.settings.items():
        if key == "files":  # given without a key
            continue
        value, comment = defaults[field.name], field.metadata["comment"]
        if isinstance(value, dict):  # a config group
            choices = sorted(path.stem for path in (config.CONF_DIR / key).glob("*.yaml"))
            comment += f": {', '.join(choices)}; {key}.* are its settings"
            value = chosen[key]
        value = value if isinstance(value, str) else json.dumps(value)
        lines.append(f"  {key}={value}")
        lines.append(textwrap.indent(textwrap.fill(comment, 92), "      "))
    return "\n".join(
        [
            f"usage: {program} {tool.usage}",
            f"       {program} [--help | --cfg]",
            "",
            _doc(tool),
            "",
            "settings and their defaults (--cfg prints the whole configuration):",
            *lines,
        ]
    )


def _doc(tool: Tool) -> str:
    summary, _, description = str(tool.schema.__doc__).partition("\n")
    return summary + "\n" + textwrap.dedent(description).rstrip()


def _log_to_stdout() -> None:
    """Print messages of this package from INFO on, of libraries from WARNING on, as bare lines."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING, force=True)
    logging.getLogger("mnist_sweep").setLevel(logging.INFO)
