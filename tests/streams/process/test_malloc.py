"""Freed memory returns to the system."""

import subprocess
import sys

import pytest

# Allocates in many threads, in blocks of every size up to a megabyte, keeps a small one beside each, frees the rest.
PROGRAM = """
import sys, threading
from pathlib import Path
from tamiyo.streams.process.malloc import limit_heaps
if sys.argv[1] == "yes" and not limit_heaps():
    print("not glibc"); sys.exit()
kept = []
def work(n):
    blocks = []
    for i in range(60):
        blocks.append(bytearray(200_000 + 10_000 * ((7 * i + n) % 80)))
        kept.append(bytearray(600))
    blocks.clear()
    blocks.extend(bytearray(200_000 + 10_000 * ((7 * i + n) % 80)) for i in range(60))
    blocks.clear()
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000)
"""


# Like the ends of topics: messages of 30 kB, read and dropped, with a small object kept for each.
PIECES = """
import sys
from pathlib import Path
from tamiyo.streams.process.malloc import limit_heaps, trim
if not limit_heaps():
    print("not glibc"); sys.exit()
blocks, kept = [], []
for _ in range(3000):
    blocks.append(bytearray(30_000)); kept.append(bytearray(600))
blocks.clear()
if sys.argv[1] == "yes":
    trim()
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 1_000_000)
"""


def resident_mb(settings: str, program: str = PROGRAM) -> int:
    done = subprocess.run([sys.executable, "-c", program, settings], capture_output=True, text=True, check=True)
    if "not glibc" in done.stdout:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_blocks_are_returned() -> None:
    steady, usual = resident_mb("yes"), resident_mb("no")
    assert steady < 40
    assert usual > steady


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_trim_returns_free_pages_between_used_ones() -> None:
    assert resident_mb("no", PIECES) - resident_mb("yes", PIECES) > 60
