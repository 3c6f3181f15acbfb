"""Shows the records of a topic as a table that grows: columns chosen for each topic, with short ids."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from tamiyo.schemas import topics
from tamiyo.schemas.display import printable
from tamiyo.streams.admin.topic_tail import TopicLine, source_name
from tamiyo.streams.headers import REASON_HEADER, SOURCE_HEADER, STAGE_HEADER

ID_WIDTH = 8  # characters of a short id, of 36 bits if it is a hash: unique among thousands
KNOWN_IDS = 20_000  # ids that a short one must differ from; then they are forgotten
WIDE = 120  # columns of a terminal that shows all columns of the table

Values = Mapping[str, Any]
STYLES = {
    "executed": "green", "compiled": "green", "released": "green", "yes": "",
    "vetoed": "yellow", "refused": "yellow", "dry_run": "yellow", "rolled_back": "yellow", "failed": "red",
}  # fmt: skip
"""Colours of states."""
TYPES = {
    "load_kernel": "load", "unload_kernel": "unload", "fossilize_kernel": "fossilize",
    "optimize_parameters": "optimize",
}  # fmt: skip
"""Short names of decision types."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    title: str
    width: int
    """The least width, in characters."""
    value: Callable[[Values], Any]
    """From the record's fields."""
    right: bool = False
    grows: bool = False
    """Whether it takes a share of a wide terminal."""
    wide: bool = False
    """Whether only a terminal of `WIDE` columns, or a file, has it."""
    id: bool = False
    """Whether its values are ids, which are shortened."""
    styles: bool = False
    """Whether its values are states, which have colours."""


def _text(name: str, title: str = "", width: int = 8, *, grows: bool = True, wide: bool = False) -> Column:
    return Column(title or name, width, lambda values: values.get(name), grows=grows, wide=wide)


def _state(name: str, title: str = "", width: int = 8) -> Column:
    return Column(title or name, width, lambda values: values.get(name), styles=True)


def _id(name: str, title: str, *, wide: bool = False) -> Column:
    return Column(title, ID_WIDTH, lambda values: values.get(name), id=True, wide=wide)


def _number(name: str, title: str = "", width: int = 6, *, wide: bool = False) -> Column:
    title = title or name
    return Column(title, max(width, len(title)), lambda values: values.get(name), right=True, wide=wide)


def _computed(title: str, width: int, value: Callable[[Values], Any], *, wide: bool = False) -> Column:
    return Column(title, max(width, len(title)), value, right=True, wide=wide)


def _numbers(values: Values, name: str) -> list[float]:
    found = values.get(name)
    return [each for each in found if each is not None] if isinstance(found, list) else []


def _sum(name: str) -> Callable[[Values], Any]:
    return lambda values: sum(_numbers(values, name))


def _mean(name: str) -> Callable[[Values], Any]:
    def mean(values: Values) -> float | None:
        found = _numbers(values, name)
        return sum(found) / len(found) if found else None

    return mean


def _count(name: str) -> Callable[[Values], Any]:
    return lambda values: len(values.get(name) or ())


def _within(name: str, key: str) -> Callable[[Values], Any]:
    return lambda values: (values.get(name) or {}).get(key)


def _type(values: Values) -> Any:
    return TYPES.get(values.get("type", ""), values.get("type"))


def _action_type(values: Values) -> Any:
    found = _within("action", "type")(values)
    return TYPES.get(found, found)


def _veto(values: Values) -> Any:
    return ",".join(str(each.get("by")) for each in values.get("vetoes") or ()) or (
        "dry run" * _true(values, "dry_run")
    )


def _true(values: Values, name: str) -> bool:
    return bool(values.get(name))


def _orders(values: Values) -> Any:
    if "pinned" not in values or not (values["pinned"] or values["frozen"]):
        return values.get("status")
    return "+".join(name for name in ("pinned", "frozen") if values[name])


STEP = _number("step")
RUN = _id("run_id", "run")
LAYERS = _computed("layers", 6, _count("layer_id"))

COLUMNS: dict[str, tuple[Column, ...]] = {
    topics.KERNEL_PERFORMANCE.name: (
        RUN, STEP, LAYERS, _computed("latency ms", 10, _sum("execution_latency_ms")),
        _computed("errors", 6, _sum("error_count")), _computed("dead", 7, _mean("dead_neuron_ratio")),
        _computed("cache hits", 10, _mean("cache_hit_rate")), _number("epoch", wide=True), _text("final", width=5),
    ),
    topics.CACHE_HIT_RATES.name: (
        RUN, STEP, _number("hits"), _number("misses"), _number("hit_rate", "hit rate"), _number("entries"),
        _number("capacity"), _number("evictions"),
    ),
    topics.ERROR_RECOVERY.name: (
        RUN, STEP, _text("layer_id", "layer"), _id("kernel_id", "kernel"), _text("error_type", "error", 10),
        _text("strategy", width=8, grows=False), _text("success", "works", 5, grows=False), _text("message", width=10),
        _number("recovery_time_ms", "ms", wide=True),
    ),
    topics.LAYER_HEALTH.name: (
        RUN, STEP, LAYERS, _computed("gradient", 8, _mean("gradient_norm")),
        _computed("update", 8, _mean("update_ratio")), _computed("growth", 8, _mean("growth_score")),
        _computed("active", 6, _sum("active_seeds")), _computed("fossil", 6, _sum("fossilized_seeds")),
        _computed("error", 5, _sum("error_seeds")), _computed("dormant", 7, _sum("dormant_seeds"), wide=True),
        _computed("kernel parameters", 10, _sum("kernel_parameters"), wide=True),
    ),
    topics.MODEL_PERFORMANCE.name: (
        RUN, STEP, _number("train_loss", "train", 8), _number("validation_loss", "valid", 8),
        _number("validation_accuracy", "accuracy"), _number("parameters", width=10),
        _number("overhead_ratio", "overhead"), _number("throughput", "samples/s", wide=True),
        _number("step_time_ms", "step ms", wide=True), _number("dropped_records", "dropped", wide=True),
    ),
    topics.TOPOLOGY.name: (
        RUN, _text("task", width=8), _computed("layers", 6, _count("layers")), _computed("edges", 6, _count("edges")),
        _number("cooldown_steps", "cooldown"), _number("parameter_budget", "budget", 10),
        _id("topology_id", "topology"),
    ),
    topics.SIGNALS.name: (
        RUN, STEP, _text("source", width=16), LAYERS, _number("shed", width=5), _number("filtered"),
        _text("final", width=5, grows=False), _id("signal_id", "signal", wide=True),
    ),
    topics.WINDOWS.name: (
        RUN, _number("start"), _number("end"), LAYERS, _number("signals"), _number("frames"), _number("shed", width=5),
        _text("final", width=5, grows=False), _id("window_id", "window"),
    ),
    topics.GRAPHS.name: (
        RUN, STEP, LAYERS, _computed("problems", 8, _count("problematic")), _computed("health", 6, _mean("health")),
        _number("parameters", width=10), _computed("active", 6, _sum("active_seeds")), _id("graph_id", "graph"),
        _id("window_id", "window", wide=True), _id("topology_id", "topology", wide=True),
    ),
    topics.DECISIONS.name: (
        RUN, STEP, Column("type", 9, _type), _text("layer_id", "layer", 7), _text("blueprint", width=11),
        _number("confidence", "conf", 4), Column("veto", 7, _veto, grows=True), _number("policy_version", "policy"),
        _id("decision_id", "decision", wide=True), _number("predicted_reward", "predicted", wide=True),
        _number("urgency", wide=True), _text("method", width=8, grows=False, wide=True),
    ),
    topics.KERNELS.name: (
        RUN, _id("kernel_id", "kernel"), _text("layer_id", "layer", 7), _text("blueprint", width=11), _state("status"),
        _number("parameters", width=10), _text("reason", width=8), _number("size_bytes", "bytes", 8, wide=True),
        _number("compile_time_ms", "ms", wide=True), _id("decision_id", "decision", wide=True),
    ),
    topics.OUTCOMES.name: (
        RUN, STEP, Column("type", 9, _type), _text("layer_id", "layer", 7), _state("status"),
        _computed("loss before", 8, _within("before", "loss")), _computed("after", 8, _within("after", "loss")),
        _text("reason", width=8), _number("duration_ms", "ms", wide=True), _text("blueprint", width=11, wide=True),
        _id("decision_id", "decision", wide=True),
    ),
    topics.REWARDS.name: (
        RUN, STEP, Column("type", 9, _action_type), Column("layer", 7, _within("action", "layer_id"), grows=True),
        _state("status"), _number("total", "reward", 7), _number("worth", width=8), _number("confidence", "conf", 5),
        _text("complete", "done", 4, grows=False), _number("revision", "rev", 3, wide=True),
        _number("predicted_reward", "predicted", wide=True), _number("worth_half_width", "+-", 8, wide=True),
        _id("decision_id", "decision", wide=True),
    ),
    topics.EXPERIENCE.name: (
        RUN, _id("experience_id", "decision"), _number("revision", "rev", 3), _number("action_index", "action"),
        _number("policy_version", "policy"), _number("reward", width=7), _number("worth", width=8),
        _number("confidence", "conf", 5), _text("complete", "done", 4, grows=False), _text("task", wide=True),
    ),
    topics.CHECKPOINTS.name: (
        _text("name", width=10), _number("version", width=7), Column("status", 13, _orders, styles=True),
        _number("experiences", width=11), _number("updates", width=7), _number("size_bytes", "bytes", 8),
        _text("reason", width=8), _text("issued_by", "by", wide=True), _number("parent_version", "parent", wide=True),
    ),
    topics.CONTROL.name: (
        RUN, _text("paused", width=6, grows=False), _text("dry_run", "dry run", 7, grows=False),
        _text("protected_layers", "protected", 12), _text("issued_by", "by", 8), _text("reason", width=12),
    ),
}  # fmt: skip
"""By topic the columns after the time."""


def _header(name: str, title: str, width: int, *, grows: bool = False, wide: bool = False) -> Column:
    return Column(title, width, lambda headers: headers.get(name), grows=grows, wide=wide)


DEAD_LETTER_COLUMNS = (
    _id("key", "run"), _number("step"), _header(STAGE_HEADER, "stage", 9),
    _header(SOURCE_HEADER, "source", 12, grows=True, wide=True), _header(REASON_HEADER, "reason", 20, grows=True),
)  # fmt: skip
"""The columns of `.dlq` and `.late` topics; they are of the headers, the key and the record's fields."""


class ShortIds:
    """Shortens ids to as few characters as tell them apart from the others that it has shortened."""

    def __init__(self, width: int = ID_WIDTH) -> None:
        """Shorten to `width` characters or more."""
        self._width = width
        self._sorted: list[str] = []

    def short(self, id: str) -> str:
        """Return an id's shortest beginning that no other id has.

        Example:
            >>> ids = ShortIds()
            >>> ids.short("9f86d081884c7d65"), ids.short("9f86d081ffff0000"), ids.short("mnist1d-0")
            ('9f86d081', '9f86d081f', 'mnist1d-0')
        """
        place = bisect_left(self._sorted, id)
        if place == len(self._sorted) or self._sorted[place] != id:
            if len(self._sorted) >= KNOWN_IDS:
                self._sorted, place = [], 0
            insort(self._sorted, id)
        # Only its neighbours can begin with more of it than the others do.
        others = self._sorted[max(0, place - 1) : place] + self._sorted[place + 1 : place + 2]
        width = max([self._width, *(1 + _common(id, other) for other in others)])
        # To leave out one or two characters saves nothing, and hides the number of a run.
        return id if len(id) <= width + 4 else id[:width]

    def shortened(self, values: Any) -> Any:
        """Return JSON values with their ids shortened: fields that end in `_id` or are `key`, but for layers."""
        if not isinstance(values, dict):
            return values
        return {
            name: self.short(value)
            if isinstance(value, str) and (name.endswith("_id") or name == "key") and name != "layer_id"
            else self.shortened(value)
            for name, value in values.items()
        }


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    return next((place for place, (a, b) in enumerate(zip_longest(one, other)) if a != b), len(one))


class TopicTable:
    """Turns the records of one topic into rows."""

    def __init__(
        self, bare: str, width: int, *, cut: bool = True, full_ids: bool = False, page: int | None = None
    ) -> None:
        """Choose the columns.

        Args:
            bare: the topic's name without prefix, or that of its `.dlq` or `.late`.
            width: characters of a line.
            cut: cut what is longer than its column; otherwise the row becomes longer.
            full_ids: whether ids stay whole.
            page: after how many lines the header is repeated; None: never.
        """
        self._dead_letters = bare != source_name(bare)
        chosen = DEAD_LETTER_COLUMNS if self._dead_letters else COLUMNS[bare]
        self.columns = [each for each in chosen if not each.wide or width >= WIDE]
        self._widths = _widths(self.columns, width - len("00:00:00"))
        self._cut = cut
        self._ids = None if full_ids else ShortIds()
        self._page = page
        self._lines = 0
        """Lines since the header; 0: it was not shown yet."""
        self._date = ""

    def lines(self, line: TopicLine) -> Iterator[Text]:
        """Yield the lines that show a record: its row, after the header and the date where these are due."""
        time = _time(line.timestamp_ms)
        date = time.strftime("%Y-%m-%d")
        head = self._lines == 0 or (self._page is not None and self._lines >= self._page)
        if head:
            self._lines = 0
            yield self.header()
        if head or date != self._date:
            self._date = date
            self._lines += 1
            yield Text(f"{date} UTC", "dim")
        self._lines += 1
        yield self.row(line)

    def header(self) -> Text:
        """Return the row of titles."""
        cells = [Text(_fit(each.title, width, each.right, True)) for each, width in self._sized()]
        return _joined([Text("time    "), *cells], "bold")

    def row(self, line: TopicLine) -> Text:
        """Return the row of a record."""
        time = Text(_time(line.timestamp_ms).strftime("%H:%M:%S"), "dim")
        values = line.value
        if self._dead_letters:
            values = {**(values or {}), **line.headers, "key": line.run_id}
        if values is None:
            return _joined([time, *self._run(line), Text("(removed)", "dim")])
        if "undecodable" in values and not self._dead_letters:
            return _joined([time, *self._run(line), Text(printable(f"undecodable: {values['undecodable']}"), "red")])
        for name in ("redrive", "end"):
            if name in values and "run_id" not in values:
                return _joined([time, Text(printable(f"({name} {values[name]})"), "dim")])
        return _joined([time, *(self._cell(each, width, values) for each, width in self._sized())])

    def _run(self, line: TopicLine) -> list[Text]:
        return [self._cell(RUN, width, {"run_id": line.run_id}) for each, width in self._sized() if each.title == "run"]

    def _sized(self) -> Iterator[tuple[Column, int]]:
        yield from zip(self.columns, self._widths, strict=True)

    def _cell(self, column: Column, width: int, values: Values) -> Text:
        value = column.value(values)
        text = shown(value)
        if column.id and self._ids is not None and isinstance(value, str):
            text = printable(self._ids.short(value))
        cut = self._cut and not (column.id and self._ids is None)  # an id that was to be whole is whole
        return Text(_fit(text, width, column.right, cut), STYLES.get(text, "") if column.styles else "")


def shown(value: Any) -> str:
    """Return a value as a cell: numbers with four digits, - where there is none."""
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return printable(",".join(map(str, value)))
    return printable(str(value))


def _time(time_ms: int) -> datetime:
    return datetime.fromtimestamp(min(max(0, time_ms), 253_402_300_799_000) / 1_000, UTC)  # up to the year 9999


def _widths(columns: list[Column], width: int) -> list[int]:
    """Return the columns' widths: what is left of a line is shared by those that grow."""
    widths = [each.width for each in columns]
    growing = [place for place, each in enumerate(columns) if each.grows or each.title == "run"]
    left = width - sum(widths) - len(widths)  # each has a space before it
    for number, place in enumerate(growing):
        share = max(0, left) // (len(growing) - number)
        taken = min(share, 40)
        widths[place] += taken
        left -= taken
    return widths


def _fit(text: str, width: int, right: bool, cut: bool) -> str:
    """Return a text in exactly a width; one that is too long loses its middle, as the ends of names differ."""
    length = cell_len(text)
    if length > width:
        if not cut:
            return text
        tail = (width - 1) // 2
        head = set_cell_size(text, width - 1 - tail).rstrip()
        kept = text[-tail:] if tail else ""
        while cell_len(kept) > tail:
            kept = kept[1:]
        text, length = f"{head}…{kept}", cell_len(head) + 1 + cell_len(kept)
    space = " " * (width - length)
    return space + text if right else text + space


def _joined(cells: list[Text], style: str = "") -> Text:
    joined = Text(" ", style).join(cells)
    joined.rstrip()
    if style:
        joined.stylize(style)
    return joined
