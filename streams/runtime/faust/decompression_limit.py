"""Limit the size to which a compressed batch may unpack.

Read against aiokafka 0.14.0 (`aiokafka.codec`, `aiokafka.record.default_records`, `aiokafka.record.legacy_records`).

Kafka's own limits hold for compressed bytes, and aiokafka unpacks a batch of any size: a megabyte of zeros in zstd is
tens of gigabytes. librdkafka has such a limit (`receive.message.max.bytes`), aiokafka has none to set.
"""

import sys
import zlib
from collections.abc import Callable
from typing import Any

import cramjam
import numpy as np
from aiokafka.errors import CorruptRecordException
from aiokafka.record import default_records, legacy_records

MAX_BATCH_BYTES = 64 * 1024 * 1024  # four of the largest records; honest batches hold one request's, a megabyte
READERS = {default_records.DefaultRecordBatch.__module__, legacy_records.LegacyRecordBatch.__module__}

Decode = Callable[[Any], bytes]


def _into_buffer(codec: Any) -> Decode:
    def decode(payload: Any) -> bytes:
        # The system provides memory only for the pages that are written to.
        buffer = np.empty(MAX_BATCH_BYTES, np.uint8)
        try:
            length = codec.decompress_into(payload, buffer)
        except cramjam.DecompressionError as error:
            raise CorruptRecordException(_message(error)) from error
        return buffer[:length].tobytes()

    return decode


def _gzip(payload: Any) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        unpacked = decompressor.decompress(bytes(payload), MAX_BATCH_BYTES)
    except zlib.error as error:
        raise CorruptRecordException(_message(error)) from error
    if not decompressor.eof:
        raise CorruptRecordException(_message("the stream has not ended"))
    return unpacked


def _message(error: object) -> str:
    return f"a compressed batch is broken, or unpacks to more than {MAX_BATCH_BYTES} bytes: {error}"


def limit_decompression() -> None:
    """Make every aiokafka consumer of this process refuse a larger batch with CorruptRecordException.

    Snappy stays as it is: it cannot pack more than about twenty to one.
    """
    for name in READERS:
        module = sys.modules[name]
        vars(module).update(
            gzip_decode=_gzip, lz4_decode=_into_buffer(cramjam.lz4), zstd_decode=_into_buffer(cramjam.zstd)
        )
