"""The training side: seeds and kernels, probes, and the client that `attach` makes. Silent unless asked to log."""

import logging

logging.getLogger(__name__).addHandler(logging.NullHandler())
