"""Spares the garbage collector what lives as long as the process."""

import gc

YOUNG = 10_000  # objects made since the last collection: one batch of records makes thousands, all freed by counting


def freeze() -> None:
    """Leave everything that exists now out of later collections; called once the process has started.

    A worker has imported torch and Faust by then: a quarter of a million objects that every full collection would scan
    again, which costs a fifth of the processor time of a busy worker.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 20)
