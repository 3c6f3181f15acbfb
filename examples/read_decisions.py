"""Read decisions with nothing of Tamiyo's but the Avro schema.

pip install aiokafka cramjam fastavro
python examples/read_decisions.py kafka:9092
"""

import asyncio
import io
import sys
from pathlib import Path

import aiokafka
import fastavro

TOPIC = "tamiyo.adaptation.decisions"
SCHEMA = fastavro.schema.load_schema(Path(__file__).parents[1] / "schemas" / "avro" / "AdaptationDecision.avsc")


async def main(servers: str) -> None:
    """Print every decision, from the oldest on."""
    consumer = aiokafka.AIOKafkaConsumer(TOPIC, bootstrap_servers=servers, auto_offset_reset="earliest")
    async with consumer:
        async for message in consumer:
            # Confluent's wire format has a header of 5 bytes, Avro single-object encoding one of 10.
            header = 5 if message.value[0] == 0 else 10
            decision = fastavro.schemaless_reader(io.BytesIO(message.value[header:]), SCHEMA, None)
            print(decision["run_id"], decision["step"], decision["type"], decision["layer_id"], flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
