"""The learner's process: runs the loop in a thread, with probes, a watchdog and exit statuses."""

import asyncio
import signal

import structlog

from tamiyo.schemas.errors import BrokerRefused, ConfigurationError, TamiyoError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.process.exit_codes import EXIT_CONFIG, EXIT_FAILURE, EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.process.http_endpoint import HealthServer
from tamiyo.streams.process.watchdog import LoopWatch
from tamiyo.streams.settings import LearnerSettings

log = structlog.get_logger(__name__)


def run_learner(
    settings: LearnerSettings | None = None,
    *,
    kafka: KafkaSettings | None = None,
    names: TopicNames | None = None,
) -> int:
    """Learn until SIGTERM or SIGINT.

    On a signal the current update is finished and released. Experiences that were read but not learned from are read
    again by the next learner.

    Args:
        settings: by default the environment's.
        kafka: by default the environment's.
        names: by default the environment's.

    Returns:
        The exit status: 0 after a signal; 1, or 75 once it has been ready, if Kafka or the store cannot be used; 78 if
        Kafka refuses it once it has been ready; 70 after a bug.
    """

    async def main() -> int:
        chosen = settings or LearnerSettings()
        topics = names or TopicNames()
        loop = LearnerLoop(chosen, kafka or KafkaSettings(), topics)
        health = HealthServer(
            healthy=loop.health,
            ready=loop.readiness,
            prefix=topics.prefix,
            host=chosen.http_host,
            port=chosen.http_port,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, loop.stop)
        await health.start()
        watchdog = LoopWatch("the learner's loop", lambda: loop.turned, chosen.stall_timeout_s)
        watchdog.start()
        try:
            await asyncio.to_thread(loop.run)
        except (TamiyoError, OSError) as error:
            log.error("learner failed", reason=f"{type(error).__name__}: {error}")
            if not loop.started:
                return EXIT_FAILURE
            return EXIT_CONFIG if isinstance(error, BrokerRefused | ConfigurationError) else EXIT_TEMPFAIL
        except Exception as error:
            log.critical("bug in the learner, exiting", exc_info=error)
            return EXIT_SOFTWARE
        finally:
            watchdog.stop()
            await health.stop()
        return 0

    return asyncio.run(main())
