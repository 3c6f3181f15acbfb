"""What the views draw on: a terminal's width, its characters, and lines, bars and charts made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamiyo.schemas.display import narrow, printable

WIDE = 110  # columns of a terminal that shows every column of a table
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*%#"

STATES = {
    "training": "green", "paused": "yellow", "finished": "", "silent": "red",
    "executed": "green", "pending": "cyan", "vetoed": "yellow", "dry_run": "yellow", "refused": "yellow",
    "failed": "red", "active": "green", "loading": "cyan", "fossilized": "blue", "unloaded": "dim",
}  # fmt: skip
"""Colours of states of runs, decisions and kernels."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A terminal."""

    width: int = 80
    ascii_only: bool = False
    """Whether it has no other characters than ASCII's."""

    @classmethod
    def of(cls, console: Console) -> "Canvas":
        """Return that of a console."""
        return cls(max(40, console.width), console.options.ascii_only)

    @property
    def wide(self) -> bool:
        """Return whether there is room for every column."""
        return self.width >= WIDE

    def sparkline(self, values: Sequence[float | None], width: int) -> str:
        """Return a line of blocks as high as values; as many as fit, each the mean of its share; gaps are spaces."""
        return self.chart(values, width, 1)[0]

    def chart(
        self, values: Sequence[float | None], width: int, height: int, bounds: tuple[float, float] | None = None
    ) -> list[str]:
        """Return rows of blocks, the highest first.

        Args:
            values: the curve, evenly spaced; None: not measured.
            width: characters of a row.
            height: rows.
            bounds: values at the bottom and the top; None: the lowest and highest mean shown.
        """
        means = resampled(values, width)
        known = [each for each in means if each is not None]
        low, high = bounds or (min(known, default=0.0), max(known, default=0.0))
        blocks = ASCII_BLOCKS if self.ascii_only else BLOCKS
        top = height * len(blocks) - 1
        scale = top / (high - low) if high > low else 0.0
        levels = [None if each is None else round(min(max(0.0, (each - low) * scale), top)) for each in means]
        return ["".join(_block(level, row, blocks) for level in levels) for row in reversed(range(height))]

    def bar(self, share: float, width: int) -> str:
        """Return a bar of a share of a width."""
        filled = round(min(max(share, 0.0), 1.0) * width)
        return ("#" if self.ascii_only else "█") * filled

    def signed_bar(self, share: float, width: int) -> Text:
        """Return a bar that begins in the middle of a width: to the right for a positive share, else to the left."""
        half = width // 2
        bar = self.bar(abs(share), half)
        middle = "|" if self.ascii_only else "│"
        if share < 0:
            return Text.assemble(" " * (half - len(bar)), (bar, "red"), middle, " " * half)
        return Text.assemble(" " * half, middle, (bar, "green"), " " * (half - len(bar)))

    def plain(self, text: str) -> str:
        """Return a text for this terminal."""
        return text.encode("ascii", "replace").decode() if self.ascii_only else text

    def id(self, value: Any, width: int = 8) -> str:
        """Return an id, shortened."""
        text = words(value)
        return text if len(text) <= width + 4 else text[:width]


def _block(level: int | None, row: int, blocks: str) -> str:
    if level is None:
        return " "
    within = level - row * len(blocks)
    if within < 0:
        return " "
    return blocks[min(within, len(blocks) - 1)]


def resampled(values: Sequence[float | None], width: int) -> list[float | None]:
    """Return at most `width` means of consecutive values; None where none of them is known."""
    if len(values) <= width:
        return [_number(each) for each in values]
    found: list[float | None] = []
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        known = [each for each in map(_number, part) if each is not None]
        found.append(sum(known) / len(known) if known else None)
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def words(value: Any) -> str:
    """Return a text of a document for a terminal; - where there is none."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    return printable(str(value))


def state(value: Any) -> Text:
    """Return a state in its colour."""
    return Text(words(value).replace("_", " "), STATES.get(str(value), ""))


def number(value: Any, spec: str = ".4g") -> str:
    """Return a number in a format; - for null."""
    return "-" if value is None else format(value, spec)


def count(value: Any) -> str:
    """Return a whole number with separators; - for null."""
    return number(value, ",.0f")


def plural(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def gain(value: Any, spec: str = "+.3f") -> Text:
    """Return a signed number: green above 0, red below."""
    if value is None:
        return Text("-")
    return Text(format(value, spec), "green" if value > 0 else "red" if value < 0 else "")


def size(value: Any) -> str:
    """Return bytes with a unit."""
    if value is None:
        return "-"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value} B"


def age(time_ms: Any, now_ms: Any) -> str:
    """Return how long ago a time was: 12s, 5m, 3h, 2d."""
    if time_ms is None or now_ms is None:
        return "-"
    seconds = max(0, now_ms - time_ms) // 1000
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def action(values: dict[str, Any]) -> str:
    """Return an action in words: load low_rank at features.0."""
    kind = {"load_kernel": "load", "unload_kernel": "unload", "fossilize_kernel": "fossilize"}.get(
        values.get("type") or "", values.get("type")
    )
    parts = [words(kind)]
    if values.get("blueprint"):
        parts.append(words(values["blueprint"]))
    if values.get("layer_id"):
        parts.append(f"at {words(values['layer_id'])}")
    return " ".join(parts)


def source_line(document: dict[str, Any]) -> Text:
    """Return where the records come from and how many were read; a failure in red."""
    source = document.get("source") or {}
    parts = [words(source.get("name")), f"{count(source.get('records') or 0)} records"]
    if source.get("undecodable"):
        parts.append(f"{count(source['undecodable'])} undecodable")
    if source.get("reading") and source.get("total"):
        parts.append(f"reading, {100 * (source.get('records') or 0) / source['total']:.0f} %")
    line = Text(", ".join(parts), "dim")
    if source.get("problem"):
        line.append(f"\n{words(source['problem'])}", "red")
    return line


def table(*titles: str, right: Sequence[str] = (), fold: Sequence[str] = (), title: str = "") -> Table:
    """Return an empty table.

    Args:
        titles: of its columns.
        right: titles of columns that are aligned to the right.
        fold: titles of columns whose long names are folded.
        title: above the table.
    """
    made = Table(title=Text(title, "bold") if title else None, title_justify="left")
    for each in titles:
        justify, overflow = "right" if each in right else "left", "fold" if each in fold else "crop"
        made.add_column(Text(each), justify=justify, overflow=overflow)  # type: ignore[arg-type]
    return made


def fitted(made: Table) -> Table:
    """Return a table with its rows, fitted to 80 columns as far as its words do."""
    made = narrow(made)
    made.padding = (0, 1, 0, 0)
    return made


def summary(values: Sequence[tuple[str, Text | str]], canvas: Canvas) -> Table:
    """Return names and values in as many pairs of columns as fit."""
    pairs = 4 if canvas.width >= 150 else 3 if canvas.wide else 2
    grid = Table.grid(padding=(0, 1))
    for _ in range(pairs):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold", ratio=1)
    grid.expand = True
    cells: list[Text] = []
    for name, value in values:
        cells += [Text(name), value if isinstance(value, Text) else Text(value)]
    for start in range(0, len(cells), 2 * pairs):
        grid.add_row(*cells[start : start + 2 * pairs])
    return grid
