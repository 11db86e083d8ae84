import subprocess
import sys
import zipfile
from pathlib import Path

from mnist_sweep import config

ROOT = Path(__file__).parent.parent


def test_wheel_carries_the_configuration(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "installed")
    ours = {f"mnist_sweep/conf/{p.relative_to(config.CONF_DIR)}" for p in yaml_files()}
    assert ours <= names
    assert not any(name.startswith("tests") for name in names)
    # found by the package itself, away from the checkout
    done = subprocess.run(
        [sys.executable, "-m", "mnist_sweep", "--cfg", "job", "model=vgg"],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "batch_norm: true" in done.stdout


def yaml_files() -> list[Path]:
    return sorted(config.CONF_DIR.rglob("*.yaml"))
