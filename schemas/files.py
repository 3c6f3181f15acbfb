"""Files that are written whole or not at all, and whether they can be."""

import os
import tempfile
import uuid
from pathlib import Path

PARTIAL_SUFFIX = ".part"


def write_atomically(path: Path, data: bytes | str, *, replace: bool = True) -> None:
    """Write a file under another name, then give it its own: no reader and no crash meets half of it.

    Args:
        path: the file; its folder must exist.
        data: its content; text is encoded as UTF-8.
        replace: whether a file at `path` may be replaced.

    Raises:
        FileExistsError: there is a file at `path`, and `replace` is False.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        if replace:
            partial.replace(path)
        else:
            os.link(partial, path)  # unlike a rename, never over another file
    finally:
        partial.unlink(missing_ok=True)


def output_problem(path: Path) -> str | None:
    """Return why a file cannot be written later, or None if it can; nothing is left behind.

    Args:
        path: the file, which may exist.
    """
    folder = path.absolute().parent
    if path.is_dir():
        return f"{path} is a folder"
    if not folder.is_dir():
        return f"there is no folder {path.parent}"
    return _probe(folder)


def folder_problem(path: Path) -> str | None:
    """Return why a folder cannot be made or written later, or None if it can; nothing is left behind.

    Args:
        path: the folder, which may exist.
    """
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return _probe(folder) if folder.is_dir() else f"{folder} is not a folder"


def _probe(folder: Path) -> str | None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"the folder {folder} cannot be written: {error.strerror}"
