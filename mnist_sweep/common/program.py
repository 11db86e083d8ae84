"""The command that started this process, as the user would type it."""

import argparse
import os
import shlex
import shutil
import sys


def program() -> list[str]:
    """The program without its arguments: ["python", "-m", "package"], ["python", "train.py"], ["tool"]."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    script = sys.argv[0]
    if script.endswith(".py"):
        return ["python", script]
    name = os.path.basename(script)
    installed = shutil.which(name)  # on the PATH, the name is enough
    return [
        name if installed and os.path.realpath(installed) == os.path.realpath(script) else script
    ]


def command_line(*changes: str) -> str:
    """The user's whole command, each of `changes` (key=value) in place of the same key's old value."""
    changed = {change.partition("=")[0] for change in changes}
    kept = [a for a in sys.argv[1:] if a.lstrip("+~").partition("=")[0] not in changed]
    return shlex.join([*program(), *kept, *changes])


def config_flags() -> list[str]:
    """The flags of the user's command that say where Hydra finds the configuration."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, short in (("name", "-cn"), ("path", "-cp"), ("dir", "-cd")):
        parser.add_argument(f"--config-{name}", short)
    found, _ = parser.parse_known_args(sys.argv[1:])
    flags = {key.replace("_", "-"): value for key, value in vars(found).items()}
    return [f"--{key}={value}" for key, value in flags.items() if value is not None]
