"""Deterministic ids: the same cause has the same name wherever and however often it is computed."""

import hashlib


def identity(kind: str, *parts: str | int) -> str:
    """Return 32 hex digits naming `parts` as a `kind`.

    Parts are length-prefixed before hashing (BLAKE2b, 128 bits), so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (kind, *parts):
        data = str(part).encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


def window_id(run_id: str, clock: str, width: int, start: int) -> str:
    """Name the window of `width` that begins at `start` on a run's clock."""
    return identity("window", run_id, clock, width, start)


def graph_id(window: str, topology: str) -> str:
    """Name the graph of a window joined with a topology."""
    return identity("graph", window, topology)


def decision_id(graph: str) -> str:
    """Name the one decision that answers a graph."""
    return identity("decision", graph)


def kernel_id(decision: str) -> str:
    """Name the kernel that a decision asks for."""
    return identity("kernel", decision)


def outcome_id(decision: str) -> str:
    """Name what the host did with a decision."""
    return identity("outcome", decision)


def analysis_id(decision: str, revision: int) -> str:
    """Name one revision of a decision's reward analysis."""
    return identity("analysis", decision, revision)


def sampling_seed(decision: str) -> int:
    """Return the 62-bit seed a decision samples its action with, so a replay samples the same one."""
    return int(identity("seed", decision)[:16], 16) >> 2
