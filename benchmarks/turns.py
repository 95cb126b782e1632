"""A side's end of the connection to ``compare.py``: it says when it is ready, and works when it is its turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Turns:
    """One for each process of a side that must wait for its turn.

    Attributes:
        folder: of the task.
    """

    def __init__(self) -> None:
        self.folder = Path(os.environ["COMPARE_TASK"])
        key = bytes.fromhex(os.environ["COMPARE_KEY"])
        self._connection = Client(os.environ["COMPARE_ADDRESS"], "AF_UNIX", authkey=key)
        self._connection.send(os.getpid())

    def rounds(self, versions: dict[str, str]) -> Iterator[int]:
        """The rounds to do; asking for the next one says that the last one is done.

        Args:
            versions: of the packages that this side is made of, for the table.
        """
        done: object = versions
        while True:
            self._connection.send(done)
            round = self._connection.recv()
            if round is None:
                return
            yield round
            done = round

    def finish(self, parameters: dict[str, NDArray[np.float32]]) -> None:
        """Hand over the server's parameters after the last round."""
        self._connection.send(parameters)
        self._connection.close()
