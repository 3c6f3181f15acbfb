"""Text to predict without a download: source files of Python's standard library, as indices of characters.

Another Python release has a slightly different text; one installation always has the same.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""A newline and printable ASCII; every other character has the index after them."""
VOCABULARY = len(CHARACTERS) + 1

# Modules that every release from 3.11 on has as files: about 1.5 million characters.
TRAIN = (
    "argparse", "ast", "bdb", "codecs", "collections/__init__", "configparser", "contextlib", "csv", "dataclasses",
    "difflib", "doctest", "enum", "fractions", "ftplib", "functools", "gettext", "gzip", "heapq", "http/client",
    "imaplib", "inspect", "ipaddress", "locale", "logging/__init__", "mailbox", "mimetypes", "ntpath", "optparse", "os",
    "pdb", "platform", "plistlib", "pydoc", "random", "selectors", "shutil", "smtplib", "socket", "socketserver", "ssl",
    "statistics", "subprocess",
)  # fmt: skip
VALIDATION = ("json/encoder", "tarfile", "textwrap", "threading", "tokenize", "traceback", "unittest/case", "weakref")
TEST = ("cmd", "email/message", "http/server", "queue", "tempfile", "typing", "urllib/parse", "uuid")


def text_of(modules: Iterable[str]) -> Tensor:
    """Return the source of the modules in turn, [characters] int64. Raises OSError if one is missing."""
    folder = Path(sysconfig.get_path("stdlib"))
    indices = {ord(character): index for index, character in enumerate(CHARACTERS)}
    source = "".join((folder / f"{module}.py").read_text(encoding="utf-8") for module in modules)
    return torch.tensor([indices.get(ord(character), VOCABULARY - 1) for character in source])


def spaced(samples: Tensor, count: int, unlike: Collection[bytes]) -> Tensor:
    """Return samples evenly spaced, so that they come from all files.

    Args:
        samples: [samples, characters].
        count: How many to return.
        unlike: Inputs of other splits, as `inputs_of` returns them: where a sample has one of them, the next that has
            none is taken. Blank lines in a row are often the same.
    """
    order = range(len(samples))
    return samples[
        [
            next(i for i in (*order[at:], *order[:at]) if _key(samples[i]) not in unlike)
            for at in torch.linspace(0, len(samples) - 1, count).long().tolist()
        ]
    ]


def inputs_of(samples: Tensor) -> frozenset[bytes]:
    """Return all characters but the last of each sample, as bytes that compare."""
    return frozenset(map(_key, samples))


def _key(sample: Tensor) -> bytes:
    return sample[:-1].numpy().tobytes()
