"""What a run was made of: code, packages, machine, process."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "optuna", "numpy")


@cache
def git_state() -> tuple[str, str]:
    """(commit, uncommitted diff) of the code's checkout; ("none", "") outside of one.

    The diff ends with the names of files that git does not know yet. Read once a process: what is
    imported does not change when the files do.
    """

    here = Path(__file__).parent
    ours = [folder for folder in (".", "../conf") if (here / folder).is_dir()]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode(errors="replace")  # a changed file may be in any encoding

    try:
        new = git("ls-files", "--others", "--exclude-standard", "--full-name", "--", *ours)
        diff = git("diff", "HEAD") + "".join(f"new file: {name}\n" for name in new.splitlines())
        return git("rev-parse", "HEAD").strip(), diff
    except (OSError, subprocess.CalledProcessError):
        return "none", ""


@cache
def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
