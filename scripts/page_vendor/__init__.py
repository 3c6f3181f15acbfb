"""The libraries of the watch page, bundled from npm by a pinned lock file."""
