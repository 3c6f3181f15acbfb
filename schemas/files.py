"""Files that are written whole or not at all."""

import os
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
