"""`python -m tamiyo.streams.cli`: the `tamiyo` command."""

from tamiyo.streams.cli import main

if __name__ == "__main__":
    main()
