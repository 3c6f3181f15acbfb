"""The source of the last release, from this repository's history, to run its processes beside today's."""

import io
import subprocess
import zipfile
from pathlib import Path

from tamiyo.schemas.avro_schema import RELEASED

ROOT = Path(__file__).parents[2]


def last_version() -> str:
    """Return the last release, the highest version whose schemas are kept."""
    return max((each.name for each in RELEASED.iterdir()), key=lambda name: [int(part) for part in name.split(".")])


def unpack(folder: Path) -> Path | None:
    """Unpack the last release; None where the history is not there, as in a source distribution.

    Its commit is that of its tag, or else the one at which its schemas were released.

    Args:
        folder: Receives the package `tamiyo`.

    Returns:
        `folder`, for PYTHONPATH.
    """
    commit = _commit(last_version())
    source = git("archive", "--format=zip", commit) if commit else None
    if source is None:
        return None
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        archive.extractall(folder / "tamiyo")
    return folder


def _commit(version: str) -> str | None:
    tagged = git("rev-parse", "--verify", "--quiet", f"v{version}^{{commit}}")
    added = tagged or git("log", "--diff-filter=A", "--format=%H", "--", f"schemas/avro/released/{version}")
    return added.decode().split()[-1] if added else None


def git(*arguments: str) -> bytes | None:
    """Return what git prints about this repository; None where it fails or there is none."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None
