"""Checks that the current schemas read records of every released version: BACKWARD_TRANSITIVE, without a registry.

`python -m tamiyo.schemas.compatibility` reports changes of an `.avsc` that would leave records unreadable, with exit
status 1. `--release VERSION` stores the current schemas as those of a released version, against which later ones are
checked. It needs the `avro` package of the dev extra, which implements the rules of Avro's own Java library.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from tamiyo.schemas import avro_schema


def breaks(reader: Any, writer: Any) -> list[str]:
    """Return why a reader could not decode a writer's records; empty if it can.

    Args:
        reader: The reader's schema, as JSON values.
        writer: The writer's schema, as JSON values.
    """
    found = ReaderWriterCompatibilityChecker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    if found.compatibility is SchemaCompatibilityType.compatible:
        return []
    kinds = " ".join(sorted({kind.value for kind in found.incompatibilities}))
    return [f"{kinds}: {', '.join(sorted(found.messages))} at {', '.join(sorted(found.locations))}"]


def problems(current: Path, releases: Path) -> Iterator[str]:
    """Yield every incompatibility with a release.

    Args:
        current: Folder of the current `.avsc` files.
        releases: Folder with one folder of `.avsc` files per released version.
    """
    for path in sorted(releases.glob("*/*.avsc")):
        writer, place = json.loads(path.read_text(encoding="utf-8")), f"{path.stem}, against {path.parent.name}"
        reader = current / path.name
        if not reader.exists():
            yield f"{place}: the record is missing"
            continue
        for problem in breaks(json.loads(reader.read_text(encoding="utf-8")), writer):
            yield f"{place}: {problem}"


def release(version: str, current: Path, releases: Path) -> None:
    """Store the current schemas as those of a released version.

    Args:
        version: The released version.
        current: Folder of the current `.avsc` files.
        releases: Folder with one folder per released version.

    Raises:
        FileExistsError: The version is released already.
    """
    folder = releases / version
    folder.mkdir(parents=True)
    for path in sorted(current.glob("*.avsc")):
        shutil.copyfile(path, folder / path.name)


def main(arguments: list[str]) -> int:
    """Check the schemas, or store a release; return the exit status."""
    if arguments[:1] == ["--release"] and len(arguments) == 2 and Path(arguments[1]).name == arguments[1]:
        try:
            release(arguments[1], avro_schema.FOLDER, avro_schema.RELEASED)
        except FileExistsError:
            print(f"{arguments[1]} is released already: released schemas never change", file=sys.stderr)
            return 1
        return 0
    if arguments:
        print("usage: python -m tamiyo.schemas.compatibility [--release VERSION]", file=sys.stderr)
        return 2
    found = list(problems(avro_schema.FOLDER, avro_schema.RELEASED))
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print(
            "give every new field a default; rename a field by adding another, never by removing one", file=sys.stderr
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
