"""Runs an independent schema registry."""

import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tamiyo.streams.admin.brokers import free_ports

START_TIMEOUT_S = 60.0  # up in 4 s on an idle machine


@contextmanager
def running_registry(home: str) -> Iterator[str]:
    """Run `home`/start on a free port; yield the URL of its Confluent API. Its data is discarded afterwards."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([f"{home}/start", str(port)], stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not _responds(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise AssertionError(f"the registry did not come up: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _responds(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/subjects", timeout=2):
            return True
    except OSError:
        return False
