"""Small wrong changes to the code, each of which some test must catch.

`AREA.toml` lists the changes of one package; `python -m tests.planted_changes` plants them one at a time in a copy of
the tree and runs the tests that must fail. A change that survives is a law without a test.
"""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True, slots=True)
class Change:
    """One wrong change."""

    area: str
    file: str
    """Path from the root of the tree."""
    before: str
    """Text that occurs exactly once in the file."""
    after: str
    """The wrong text in its place."""
    tests: str
    """What to give to pytest: paths or node ids, separated by spaces. At least one test must fail."""
    why: str
    """What would go wrong in use."""

    def apply(self, root: Path) -> None:
        """Plant the change in the tree at `root`.

        Raises:
            ValueError: `before` does not occur exactly once.
        """
        path = root / self.file
        text = path.read_text()
        if text.count(self.before) != 1:
            raise ValueError(
                f"{self.area}.toml: expected the text once in {self.file}, found it {text.count(self.before)} times; "
                f"adapt `before` to the code:\n{self.before}"
            )
        path.write_text(text.replace(self.before, self.after))


def areas() -> list[str]:
    """Return the areas that have a list of changes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(wanted: Collection[str] = ()) -> list[Change]:
    """Return the changes of some areas; of all when none is named.

    Raises:
        ValueError: an area has no list, or a list has an unknown or missing key.
    """
    found = []
    for area in wanted or areas():
        path = FOLDER / f"{area}.toml"
        if not path.is_file():
            raise ValueError(f"there is no area {area!r}; choose from {', '.join(areas())}")
        for number, values in enumerate(tomllib.loads(path.read_text()).get("change", []), start=1):
            try:
                found.append(Change(area=area, **values))
            except TypeError as error:
                raise ValueError(f"{path.name}, change {number}: {error}") from error
    return found
