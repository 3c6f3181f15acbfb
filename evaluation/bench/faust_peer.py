"""Faust as it comes, with the arithmetic of `numpy_windows`: one app, one ordinary agent, one event at a time.

None of our changes to Faust or aiokafka is in this process. The state is an ordinary dictionary of the agent, which is
cheaper than a Faust table with its changelog, and lost with the process.

Run `python -m tamiyo.evaluation.bench.faust_peer` with a broker and topics; SIGTERM ends it.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from tamiyo.evaluation.bench.numpy_windows import Windows
from tamiyo.evaluation.common.command_line import run_program


def main(
    bootstrap_servers: Annotated[str, typer.Option(help="host:port of Kafka")],
    source: Annotated[list[str], typer.Option(help="Existing topic to read; repeat for several")],
    target: Annotated[str, typer.Option(help="Existing topic to write")],
    width: Annotated[int, typer.Option(help="Width of a window, steps")] = 50,
) -> None:
    """Aggregate telemetry frames into windows until SIGTERM.

    Example: `python -m tamiyo.evaluation.bench.faust_peer --bootstrap-servers localhost:9092
    --source telemetry.layer.health_signals --target windows`
    """
    import faust

    app = faust.App(
        "tamiyo-bench-faust",
        broker=f"kafka://{bootstrap_servers}",
        datadir=Path("faust"),
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,  # a topic that only timers of a cluster need, and that the embedded broker lacks
    )
    outgoing = app.topic(target)
    windows = Windows(width)

    @app.agent(app.topic(*source))  # type: ignore[untyped-decorator]
    async def aggregate(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            for run_id, window in windows.add(message.topic, event.value):
                await outgoing.send(key=run_id.encode(), value=window, partition=message.partition)

    faust.Worker(app, loglevel="WARN").execute_from_commandline()


if __name__ == "__main__":
    run_program(main)
