"""`tamiyo watch` in a process of its own, and clients of its streams."""

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil


class Served:
    """A running `tamiyo watch`."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self.port = port
        self._process = psutil.Process(process.pid)

    @property
    def url(self) -> str:
        """Return the page's address."""
        return f"http://127.0.0.1:{self.port}/"

    def cpu_s(self) -> float:
        """Return the processor seconds that it has used."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Return its memory."""
        return float(self._process.memory_info().rss / 2**20)

    def document(self, path: str) -> dict[str, Any]:
        """Return a view's document."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", f"/api/view/{path}")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def follow(self, path: str, take: Callable[[dict[str, Any], float], object]) -> threading.Event:
        """Call `take` with each document of a stream and the time at which it came; return what ends that."""
        ended = threading.Event()

        def read() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            connection.request("GET", f"/api/stream/{path}")
            response = connection.getresponse()
            while not ended.is_set() and (line := response.readline()):
                if line.startswith(b"data: "):
                    came = time.time()
                    take(json.loads(line[6:]), came)
            connection.close()

        threading.Thread(target=read, daemon=True).start()
        return ended


@contextmanager
def served(*arguments: str) -> Iterator[Served]:
    """Run `tamiyo watch` with these arguments on any free port, until the block ends."""
    command = [sys.executable, "-m", "tamiyo.streams.cli", "watch", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        line = process.stderr.readline() if process.stderr is not None else ""
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if found is None:
            raise RuntimeError(f"tamiyo watch did not start: {line}")
        yield Served(process, int(found[1]))
    finally:
        process.terminate()
        process.wait(20)
        if process.stderr is not None:
            process.stderr.close()
