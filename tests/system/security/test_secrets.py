"""A marked password appears nowhere: not in logs, errors, `doctor`, `repr`, `--help` or process arguments."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tamiyo.host._kernels.store import KernelStore
from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.runtime.faust.app import create_app
from tamiyo.streams.settings import LogSettings, WorkerSettings
from tests.support.secure_broker import PASSWORD, LockedKafka

MARK = "hunter2-MARKED-5519"
ROOT = Path(__file__).parents[3]


def environment(kafka: KafkaSettings, password: str, store: Path) -> dict[str, str]:
    """Return the environment variables of `kafka`, with another password."""
    values = {
        "BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "SECURITY_PROTOCOL": kafka.security_protocol,
        "SASL_MECHANISM": kafka.sasl_mechanism or "",
        "SASL_USERNAME": kafka.sasl_username or "",
        "SASL_PASSWORD": password,
        "SSL_CA_FILE": kafka.ssl_ca_file or "",
    }
    return {
        **os.environ,
        **{f"TAMIYO_KAFKA_{name}": value for name, value in values.items()},
        "TAMIYO_TOPIC_PREFIX": "secrets.",
        "TAMIYO_STORE_URL": f"file://{store}",
    }


def tamiyo(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "tamiyo.streams.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_a_refused_worker_and_doctor_do_not_print_the_password(locked: LockedKafka, tmp_path: Path) -> None:
    env = environment(locked.user(), MARK, tmp_path)
    for arguments, status in ((("worker", "--stage", "intake"), 1), (("doctor",), 1), (("worker", "--help"), 0)):
        ended = tamiyo(*arguments, env=env)
        assert ended.returncode == status, ended.stderr
        assert MARK not in ended.stdout + ended.stderr
        if status:
            assert "TAMIYO_KAFKA_SASL_PASSWORD" in ended.stdout + ended.stderr


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_a_running_worker_does_not_print_the_password(locked: LockedKafka, tmp_path: Path) -> None:
    env = environment(locked.user(), PASSWORD, tmp_path)
    made = tamiyo("topics", "create", "--partitions", "1", env=env)
    assert made.returncode == 0, made.stderr
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tamiyo.streams.cli", "worker", "--no-supervise", "--stage", "intake"],
            cwd=ROOT, env=env, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "all stages run" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        arguments = Path(f"/proc/{process.pid}/cmdline")
        assert not arguments.exists() or PASSWORD not in arguments.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert PASSWORD not in log.read_text() + made.stdout + made.stderr


def test_settings_and_clients_do_not_show_the_password() -> None:
    kafka = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        sasl_username="me",
        sasl_password=MARK,  # type: ignore[arg-type]
        ssl_key_password=MARK,  # type: ignore[arg-type]
    )
    app = create_app("group", kafka, WorkerSettings())
    shown = [repr(kafka), str(kafka), kafka.model_dump_json(), repr(app.conf.broker_credentials), repr(app)]
    assert MARK not in "".join(shown)
    assert json.loads(kafka.model_dump_json())["sasl_username"] == "me"


@pytest.mark.parametrize(
    "wrong",
    [
        {"security_protocol": "SSLv2"},
        {"sasl_mechanism": "GSSAPI"},
        {"bootstrap_servers": 17},
        {"security_protocol": "PLAINTEXT"},
        {"sasl_username": None},
    ],
)
def test_errors_about_settings_do_not_quote_them(wrong: dict[str, object]) -> None:
    settings: dict[str, object] = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": "me",
        "sasl_password": MARK,
    }
    with pytest.raises((ValueError, ConfigurationError)) as error:
        KafkaSettings(**{**settings, **wrong})  # type: ignore[arg-type]
    assert MARK not in f"{error.value} {error.value!r}"


def test_stores_do_not_show_the_keys_in_their_urls(tmp_path: Path) -> None:
    assert without_secrets(f"s3://key:{MARK}@bucket/path?token={MARK}&x=1") == "s3://***@bucket/path?token=***&x=***"
    assert without_secrets("file:///var/tamiyo") == "file:///var/tamiyo"
    kept = f"memory://key:{MARK}@bucket"
    assert MARK not in KernelStore(kept).url + CheckpointStore(kept).url


def test_the_password_is_not_logged_at_debug_either() -> None:
    import logging

    from tamiyo.streams.process.logs import configure

    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure(LogSettings(level="DEBUG"), verbose=True)
        assert not logging.getLogger("aiokafka.conn").isEnabledFor(logging.DEBUG)
    finally:
        configure()
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
