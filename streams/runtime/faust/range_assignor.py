"""Assign the same partition number of all inputs of a stage to the same worker.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread._create_worker_consumer`) and aiokafka 0.14.0 (`AIOKafkaConsumer`).

Faust's default assignor is aiokafka's round-robin assignor: it spreads the partitions of a stage's inputs over
different workers, so a join would miss half of its records. aiokafka's range assignor keeps partition numbers together.
"""

from typing import Any

from aiokafka.coordinator.assignors.range import RangePartitionAssignor


def use_range_assignor(consumer: Any) -> None:
    """Replace the assignor of an aiokafka consumer that has not started."""
    consumer._partition_assignment_strategy = (RangePartitionAssignor,)
