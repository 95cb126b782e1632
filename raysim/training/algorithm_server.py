"""``AlgorithmServer``: what the server of an algorithm has, sends and makes of uploads. On the CPU, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import seeds
from raysim.algorithms import FederatedAlgorithm
from raysim.config.schema import Config
from raysim.errors import ClientError
from raysim.functional.context import ClientRows, ServerContext
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.storage.server_rows import ServerRows
from raysim.training.aggregation import ClientUploads, PartialSum, mean_uploads

Ints = NDArray[np.int64]
INIT, ROW, STEP = range(3)  # what the server draws for


class AlgorithmServer:
    """Takes the server step of each round; a function of what it is given, with one thread.

    Args:
        theta: (P,) the model's initial parameters.
        num_samples: (N,) training samples of every client of the run.

    Attributes:
        shared: (S,) float32.
        state: what the algorithm's server keeps between rounds, by name.
        rows: what it keeps of each client.
    """

    def __init__(self, config: Config, layout: ParameterLayout, theta: Tensor, num_samples: Ints) -> None:
        algorithm: FederatedAlgorithm = config.algorithm
        self._algorithm, self._layout, self._initial = algorithm, layout, theta
        self._seed, self._num_rounds = config.seed, config.rounds
        self._num_samples = torch.from_numpy(num_samples.astype(np.float64))
        self.shared = layout.split(theta)[0].clone()
        self.rows = ServerRows(len(num_samples), lambda c: algorithm.server_row(self._context(0, 0, ROW, c)))
        self.state = algorithm.server_init(self.shared, self._context(0, 0, INIT))

    def restore(self, shared: NDArray[np.float32], state: Mapping[str, NDArray[Any]], rows: Any = ()) -> None:
        """Go back to what a checkpoint has."""
        self.shared = torch.from_numpy(shared.copy())
        self.state = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
        self.rows.restore(rows)

    def sent(self) -> Tensors:
        """What is sent to every client, by name."""
        return self._algorithm.broadcast(self.shared, self.state)

    def messages(self, round: int, clients: Ints) -> Tensors:
        """What is sent to each of clients (K,) beside it, rows (K, m) by name."""
        if not self._algorithm.has_own("server_messages"):
            return {}
        known = ClientRows(torch.from_numpy(clients), self.rows.named(clients), {})
        sent = self._algorithm.server_messages(self.shared, self.state, known, self._context(max(0, round), 0, STEP))
        return {name: rows.detach().float().contiguous() for name, rows in sent.items()}

    def prepare(self, uploads: PartialSum) -> None:
        """Take what all clients sent before round 0.

        Raises:
            ClientError: nothing of what they sent could be used.
        """
        means = mean_uploads(self._algorithm, uploads.sums)
        if means is None:
            raise ClientError("before the first round: no client sent anything that is finite and in range")
        self.state = self._algorithm.server_prepare(self.state, means)

    def step(self, round: int, uploads: PartialSum, clients: Ints) -> Tensors | None:
        """Take the step, from what clients (K,) with ascending ids have sent; returns the means, None if there is nothing.

        Running statistics of BatchNorm are averaged, where the shared parameters have one mean: what moves parameters beyond
        it, such as momentum, would make a variance negative.

        Raises:
            ClientError: what the server has after it is not finite.
        """
        means = mean_uploads(self._algorithm, uploads.sums)
        if means is None or not len(clients):
            return None
        each = ClientUploads.merge(uploads.uploads)
        assert not each.values or (each.clients == clients).all(), "uploads of other clients than those that reported"
        values = {name: torch.from_numpy(rows) for name, rows in each.values.items()}
        known = ClientRows(torch.from_numpy(clients), self.rows.named(clients), values)
        if self._algorithm.uploads["shared"].mask is not None:
            means["shared"] = torch.where(means["shared"].isnan(), self.shared, means["shared"])
        context = self._context(round, len(clients), STEP)
        new, state, rows = self._algorithm.server_step_each(self.shared, self.state, means, known, context)
        statistics, shared = self._layout.statistics, self._algorithm.uploads["shared"]
        if statistics and shared.weighting != "each" and shared.groups is None:
            averaged, _ = self._layout.split(self._layout.mask(statistics))
            new = torch.where(averaged, means["shared"], new)
        new = new.detach().float().clone()
        self._check(round, {"shared": new, **state, **rows})
        self.shared, self.state = new, {name: value.detach() for name, value in state.items()}
        self.rows.write(clients, {name: value.detach() for name, value in rows.items()})
        return means

    def _check(self, round: int, results: Tensors) -> None:
        wrong = [name for name, value in results.items() if not value.isfinite().all()]
        if wrong:
            what = "parameters that are" if wrong[0] == "shared" else f"{wrong[0]!r}, which is"
            raise ClientError(
                f"round {round}: the server step of {self._algorithm.name!r} gives {what} not finite, from uploads that "
                "are; its hyperparameters are too large or too small for this task"
            )

    def _context(self, round: int, num_reported: int, purpose: int, client: int = 0) -> ServerContext:
        generator = torch.Generator().manual_seed(seeds.torch_seed(self._seed, "server", 3 * round + purpose, client))
        return ServerContext(
            self._layout,
            round,
            self._num_rounds,
            num_reported,
            self._initial,
            self._num_samples,
            generator,
            lambda ids, *names: self.rows.named(ids.numpy(), names),
            lambda ids: torch.from_numpy(self.rows.known(ids.numpy())),
        )
