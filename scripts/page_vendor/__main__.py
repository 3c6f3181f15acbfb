"""Bundle the libraries of the watch page: `streams/watch/page/vendor`.

`python -m scripts.page_vendor` writes vendor.js, vendor.css and LICENSES.txt; with `--check` it only reports whether
they are out of date, with exit status 1. It needs Node.js with npm, and installs by the lock file in a temporary
folder.
Users need neither: the bundle is committed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGET = Path(__file__).parents[2] / "streams" / "watch" / "page" / "vendor"
SOURCES = ("package.json", "package-lock.json", ".npmrc", "entry.js", "entry.css")
BUNDLED_WITHIN = ("@dagrejs/dagre",)
"""Development dependencies in the lock file that a dependency has bundled: their licences are ours to reproduce too."""
BUNDLER = (
    "node_modules/@esbuild/{platform}/bin/esbuild",
    "entry.js",
    "entry.css",
    "--bundle",
    "--minify",
    "--format=esm",
    "--target=es2022",
    "--charset=utf8",
    "--legal-comments=none",
    "--outdir=out",
    "--entry-names=vendor",
    "--log-level=warning",
)


def run(*command: str, folder: Path) -> str:
    """Run a command in a folder and return its output; a failure ends the program with the command's own words."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603 - fixed commands
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def licences(folder: Path) -> str:
    """Return name, version and licence text of each bundled package.

    Args:
        folder: Where the packages are installed.
    """
    names = [*json.loads((folder / "package.json").read_text())["dependencies"], *BUNDLED_WITHIN]
    texts = []
    for name in sorted(names):
        package = folder / "node_modules" / name
        about = json.loads((package / "package.json").read_text())
        text = next(path for path in sorted(package.iterdir()) if path.name.upper().startswith("LICENSE"))
        texts.append(f"{name} {about['version']} ({about['license']})\n\n{text.read_text().strip()}\n")
    return f"\n{'-' * 80}\n\n".join(texts)


def bundle(folder: Path) -> dict[str, str]:
    """Install and bundle the libraries, and return the files' texts by name.

    Args:
        folder: An empty folder to work in.
    """
    for name in SOURCES:
        shutil.copy(HERE / name, folder)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder)
    platform = run("node", "-p", "`${process.platform}-${process.arch}`", folder=folder).strip()
    run(*(part.format(platform=platform) for part in BUNDLER), folder=folder)
    files = {name: (folder / "out" / name).read_text(encoding="utf-8") for name in ("vendor.js", "vendor.css")}
    return {**files, "LICENSES.txt": licences(folder)}


def main(arguments: list[str]) -> int:
    """Write the files, or with --check report those that are out of date."""
    if shutil.which("npm") is None:
        sys.exit("npm was not found; install Node.js 18 or later, with npm")
    with tempfile.TemporaryDirectory() as folder:
        files = bundle(Path(folder))
    paths = {TARGET / name: text for name, text in files.items()}
    if "--check" in arguments:
        stale = [str(path) for path, text in paths.items() if not path.is_file() or path.read_text() != text]
        if stale:
            print(f"out of date, run python -m scripts.page_vendor: {', '.join(stale)}", file=sys.stderr)
        return 1 if stale else 0
    TARGET.mkdir(parents=True, exist_ok=True)
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
