"""Deterministic ids: the same cause has the same id, wherever and however often it is computed."""

import hashlib


def identity(kind: str, *parts: str | int) -> str:
    """Return the id of something: the BLAKE2b hash of its kind and parts, 32 hex digits (128 bits).

    Parts are length-prefixed before hashing, so ("ab", "c") and ("a", "bc") differ.

    Args:
        kind: Separates ids of different kinds with the same parts.
        *parts: What identifies it among its kind.

    Example:
        >>> identity("window", "run-1", "step", 50, 0)
        '2fb108eae3a336119911f3644d596e4f'
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (kind, *parts):
        data = str(part).encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


def window_id(run_id: str, clock: str, width: int, start: int) -> str:
    """Return the id of the window of `width` that starts at `start` on a run's clock."""
    return identity("window", run_id, clock, width, start)


def graph_id(window: str, topology: str) -> str:
    """Return the id of the graph of a window joined with a topology."""
    return identity("graph", window, topology)


def decision_id(graph: str) -> str:
    """Return the id of the decision on a graph."""
    return identity("decision", graph)


def kernel_id(decision: str) -> str:
    """Return the id of the kernel that a decision requests."""
    return identity("kernel", decision)


def outcome_id(decision: str) -> str:
    """Return the id of a decision's outcome."""
    return identity("outcome", decision)


def analysis_id(decision: str, revision: int) -> str:
    """Return the id of a revision of a decision's reward analysis."""
    return identity("analysis", decision, revision)


def sampling_seed(decision: str) -> int:
    """Return the 62-bit seed of a decision's sampling: a replay samples the same action."""
    return int(identity("seed", decision)[:16], 16) >> 2
