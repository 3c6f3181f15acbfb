"""The page's libraries: what is committed is what the lock file names."""

import json

from scripts.page_vendor import __main__ as page_vendor


def test_the_bundle_has_the_locked_versions_and_their_licences() -> None:
    lock = json.loads((page_vendor.HERE / "package-lock.json").read_text())["packages"]
    wanted = json.loads((page_vendor.HERE / "package.json").read_text())
    texts = (page_vendor.TARGET / "LICENSES.txt").read_text()
    for name in [*wanted["dependencies"], *page_vendor.BUNDLED_WITHIN]:
        about = lock[f"node_modules/{name}"]
        assert f"{name} {about['version']} ({about['license']})" in texts
    for name, version in {**wanted["dependencies"], **wanted["devDependencies"]}.items():
        assert lock[f"node_modules/{name}"]["version"] == version, "package.json pins exact versions"


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((page_vendor.HERE / "package-lock.json").read_text())["packages"]
    assert not [name for name, about in lock.items() if "resolved" in about]
    assert all("integrity" in about for name, about in lock.items() if name)


def test_the_bundle_reaches_for_nothing_outside() -> None:
    for name in ("vendor.js", "vendor.css"):
        text = (page_vendor.TARGET / name).read_text()
        for forbidden in (
            "import(",
            "XMLHttpRequest",
            "WebSocket",
            "sendBeacon",
            "new Function(",
            "eval(",
            "sourceMappingURL",
        ):
            assert forbidden not in text, f"{forbidden} in {name}"
