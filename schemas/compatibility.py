"""Whether today's schemas read what every released version wrote: BACKWARD_TRANSITIVE, without a registry.

`python -m tamiyo.schemas.compatibility` says which changes of an `.avsc` would leave records unreadable, and exits 1;
`--release VERSION` keeps today's schemas as those of a version that goes out, to be checked against from then on.
It needs the `avro` package, of the dev extra, whose rules are those of Avro's own Java library.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from tamiyo.schemas import avro_schema, released


def breaks(reader: Any, writer: Any) -> list[str]:
    """Return why a reader of schema `reader` could not read what was written with `writer`; nothing if it could."""
    found = ReaderWriterCompatibilityChecker().get_compatibility(parse(json.dumps(reader)), parse(json.dumps(writer)))
    if found.compatibility is SchemaCompatibilityType.compatible:
        return []
    kinds = " ".join(sorted({kind.value for kind in found.incompatibilities}))
    return [f"{kinds}: {', '.join(sorted(found.messages))} at {', '.join(sorted(found.locations))}"]


def problems(current: Path, releases: Path) -> Iterator[str]:
    """Yield every break between the `.avsc` files in `current` and those in each folder of `releases`."""
    for path in sorted(releases.glob("*/*.avsc")):
        writer, place = json.loads(path.read_text(encoding="utf-8")), f"{path.stem}, against {path.parent.name}"
        reader = current / path.name
        if not reader.exists():
            yield f"{place}: there is no such record any more"
            continue
        for problem in breaks(json.loads(reader.read_text(encoding="utf-8")), writer):
            yield f"{place}: {problem}"


def release(version: str, current: Path, releases: Path) -> None:
    """Keep the `.avsc` files in `current` as those of `version`; raises FileExistsError where it has some already."""
    folder = releases / version
    folder.mkdir(parents=True)
    for path in sorted(current.glob("*.avsc")):
        shutil.copyfile(path, folder / path.name)


def main(arguments: list[str]) -> int:
    """Check, or keep a release; return the exit status."""
    if arguments[:1] == ["--release"] and len(arguments) == 2 and Path(arguments[1]).name == arguments[1]:
        try:
            release(arguments[1], avro_schema.FOLDER, released.FOLDER)
        except FileExistsError:
            print(f"{arguments[1]} is released already: what is released never changes", file=sys.stderr)
            return 1
        return 0
    if arguments:
        print("usage: python -m tamiyo.schemas.compatibility [--release VERSION]", file=sys.stderr)
        return 2
    found = list(problems(avro_schema.FOLDER, released.FOLDER))
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print("new fields need a default; rename by adding a field, never by taking one away", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
