"""A schema registry that a program can stop and start again, run by `REGISTRY_HOME`/start."""

import os
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tamiyo.schemas.errors import RegistryError
from tamiyo.streams.admin.brokers import free_ports

START_TIMEOUT_S = 60.0  # up in 4 s on an idle machine
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1


class LocalRegistry:
    """One registry on a port of 127.0.0.1. A context manager.

    `start` after `stop` continues on the same port with the same schemas, as a registry does that keeps them on a disk.
    """

    def __init__(self, home: str | Path, folder: Path) -> None:
        """Prepare it.

        Args:
            home: A folder with the program `start`, which takes a port.
            folder: Receives its data and its log.
        """
        self._home = Path(home)
        self._folder = folder
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/apis/ccompat/v7"
        """Of its Confluent API."""

    def start(self) -> Self:
        """Start it and wait for it; raises RegistryError with the end of its log where it does not start."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Apicurio's own name of the setting; in memory, which is its default, a restart would forget the schemas.
        data = f"jdbc:h2:file:{self._folder.absolute()}/registry"
        with (self._folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (the program that the caller names)
                [str(self._home / "start"), str(self._port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "APICURIO_DATASOURCE_URL": data},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._responds():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RegistryError(f"the registry of {self._home} did not start: {self._log_end()}", temporary=False)
            time.sleep(POLL_S)
        return self

    def stop(self) -> None:
        """Stop it with SIGTERM, as it writes its newest schemas only then, or with SIGKILL; its data stays."""
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, number)
                self._process.wait(STOP_TIMEOUT_S)
                break
        self._process.wait()
        self._process = None

    def _responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2):  # noqa: S310 (a URL of ours)
                return True
        except OSError:
            return False

    def _log_end(self) -> str:
        return (self._folder / "registry.log").read_text(errors="replace")[-2000:]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
