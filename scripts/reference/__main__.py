"""Write the reference pages of the documentation from the code: `docs/reference/*.md`.

`python -m scripts.reference` writes them; with `--check` it names those that are out of date and exits 1.
"""

import os
import sys
from collections.abc import Callable, Sequence

from scripts.reference.command_line import command_line
from scripts.reference.configuration import configuration
from scripts.reference.features import features
from scripts.reference.markdown import FOLDER
from scripts.reference.metrics import metrics
from scripts.reference.modules import modules
from scripts.reference.sizing import sizing
from scripts.reference.topics import topics

PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "topics.md": topics,
    "features.md": features,
    "metrics.md": metrics,
    "cli.md": command_line,
    "modules.md": modules,
    "sizing.md": sizing,
}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them; return the exit status."""
    for name in [name for name in os.environ if name.startswith("TAMIYO_")]:
        del os.environ[name]  # defaults are shown, not this machine's settings
    wanted = {name: make().rstrip() + "\n" for name, make in PAGES.items()}
    stale = [
        name
        for name, text in wanted.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        if stale:
            print(f"out of date: {', '.join(stale)}; run python -m scripts.reference", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(wanted[name], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
