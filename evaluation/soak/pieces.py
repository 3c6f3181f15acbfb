"""The pieces of a soak: one each time that the program ran with the same file of samples.

Every piece has an installation of its own, so processes begin anew with it. What lies between two pieces is no part of
the soak: their times follow each other, and a trend is that of one piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamiyo.evaluation.common.samples import read_samples
from tamiyo.schemas.errors import ConfigurationError

Sample = dict[str, Any]


@dataclass(slots=True)
class Piece:
    """One run of the program; times are seconds since its beginning."""

    begin: Sample
    samples: list[Sample] = field(default_factory=list)
    faults: list[Sample] = field(default_factory=list)
    complete: bool = False
    """Whether its time was over when it ended."""
    drained: bool = False
    """Whether it ended by itself: of one that was killed, records were on their way."""

    @property
    def loaded(self) -> list[Sample]:
        """Return the samples under load: those after it show draining, and are no part of a trend."""
        return [each for each in self.samples if each["t"] <= self.samples[0]["t"] + 60 * self.begin["minutes"]]

    @property
    def seconds(self) -> float:
        """Return the duration of its load."""
        loaded = self.loaded
        return float(loaded[-1]["t"] - loaded[0]["t"])


def pieces(path: Path) -> list[Piece]:
    """Return the pieces in a file of samples; those without a sample are omitted.

    Raises:
        ConfigurationError: the file has no samples of a soak.
    """
    found: list[Piece] = []
    lines = read_samples(path)
    for line in lines:
        if line["kind"] == "begin":
            found.append(Piece(line))
        elif not found:
            break
        elif line["kind"] == "end":
            found[-1].complete, found[-1].drained = line["complete"], True
        else:
            (found[-1].samples if line["kind"] == "sample" else found[-1].faults).append(line)
    sampled = [each for each in found if each.samples]
    if not sampled:
        raise ConfigurationError(f"{path} has no samples of a soak; expected a file written by `make soak`")
    return sampled


def earlier(path: Path, options: Sample) -> Sequence[Piece]:
    """Return the pieces of a soak that a file has already; none if there is no file, or an empty one.

    Args:
        path: The file of samples.
        options: Of the command; a soak goes on with those that it began with.

    Raises:
        ConfigurationError: the file is packed, of something else, or of a soak with other options.
    """
    if path.suffix == ".gz":
        raise ConfigurationError(f"samples cannot be added to {path}: unpack it, or name another file")
    if not path.exists() or not path.stat().st_size:
        return ()
    found = pieces(path)
    for name, value in found[0].begin["options"].items():
        if options.get(name) != value:
            option = name.replace("_", "-")
            raise ConfigurationError(
                f"{path} is of a soak with --{option} {value}, but --{option} is {options.get(name)}: go on with the "
                "same options, or name another file"
            )
    return found
