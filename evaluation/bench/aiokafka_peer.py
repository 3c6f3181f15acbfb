"""The floor of the ecosystem: a plain aiokafka loop with the arithmetic of `numpy_windows`, and nothing else.

One process, one consumer, one producer. It commits what it has read every five seconds, aiokafka's default, whether or
not its windows are published, so a crash loses windows.

Run `python -m tamiyo.evaluation.bench.aiokafka_peer` with a broker and topics; SIGTERM ends it.
"""

import asyncio
import signal
from collections.abc import Sequence
from typing import Annotated

import typer

from tamiyo.evaluation.bench.numpy_windows import Windows
from tamiyo.evaluation.common.command_line import run_program


async def aggregate(bootstrap_servers: str, source: Sequence[str], target: str, width: int) -> None:
    """Aggregate frames into windows until SIGTERM.

    Args:
        bootstrap_servers: host:port of Kafka.
        source: Topics of telemetry frames.
        target: Topic of the windows.
        width: Width of a window, steps.
    """
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    windows = Windows(width)
    consumer = AIOKafkaConsumer(
        *source, bootstrap_servers=bootstrap_servers, group_id="tamiyo-bench-aiokafka", auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=5)
    async with consumer, producer:
        while not stop.is_set():
            for messages in (await consumer.getmany(timeout_ms=100)).values():
                for message in messages:
                    for run_id, window in windows.add(message.topic, message.value):
                        await producer.send(target, window, key=run_id.encode(), partition=message.partition)


def main(
    bootstrap_servers: Annotated[str, typer.Option(help="host:port of Kafka")],
    source: Annotated[list[str], typer.Option(help="Existing topic to read; repeat for several")],
    target: Annotated[str, typer.Option(help="Existing topic to write")],
    width: Annotated[int, typer.Option(help="Width of a window, steps")] = 50,
) -> None:
    """Aggregate telemetry frames into windows until SIGTERM.

    Example: `python -m tamiyo.evaluation.bench.aiokafka_peer --bootstrap-servers localhost:9092
    --source telemetry.layer.health_signals --target windows`
    """
    asyncio.run(aggregate(bootstrap_servers, source, target, width))


if __name__ == "__main__":
    run_program(main)
