"""The output directories of tools that write files."""

from datetime import datetime
from pathlib import Path


def make_output_directory(store: str) -> Path:
    """Create a directory under `store`, named by date and time like the directory of a run."""
    now = datetime.now()
    directory = Path(store) / "outputs" / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S-%f}"
    directory.mkdir(parents=True)
    return directory
