"""The code and the packages that a run is made with."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "optuna", "numpy")


def code_tags(state: tuple[str, str] | None = None) -> dict[str, str]:
    """Return the tags `git.commit`, `git.dirty` and `version.<package>`.

    Args:
        state: a result of `git_state`; None: that of this package.
    """
    commit, diff = state or git_state()
    versions = {f"version.{name}": number for name, number in package_versions().items()}
    return {"git.commit": commit, "git.dirty": str(bool(diff)).lower(), **versions}


@cache
def git_state(file: Path | None = None) -> tuple[str, str]:
    """Return (commit, uncommitted diff) of the checkout that tracks a file; ("none", "") without one.

    An environment inside the checkout of another project does not record that project. The diff ends
    with the names of new files that git does not track. It is read once a process, because code that
    is already imported does not follow later changes of its file.

    Args:
        file: code of an application, whose whole checkout and new Python files belong to its state;
            None: this package, to which its own folders belong.
    """
    tracked = (file or Path(__file__)).resolve()
    here, project = tracked.parent, Path(__file__).parent.parent
    own = [str(path) for path in (project, project.parent / "conf") if path.is_dir()]
    changed, added = ([":/"], [":/*.py"]) if file else (own, own)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode(errors="replace")  # a changed file may be in any encoding

    try:
        # this fails if git does not track the file
        git("ls-files", "--error-unmatch", "--", str(tracked))
        new = git("ls-files", "--others", "--exclude-standard", "--full-name", "--", *added)
        new_files = "".join(f"new file: {name}\n" for name in new.splitlines())
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD", "--", *changed) + new_files
    except (OSError, subprocess.CalledProcessError):
        return "none", ""


@cache
def package_versions() -> dict[str, str]:
    """Return the version of Python and of each of PACKAGES; "none" for a package that is missing."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions
