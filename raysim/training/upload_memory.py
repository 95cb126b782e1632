"""How much a server that sees each client's uploads takes, known before the first round."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.functional.context import ClientContext, ClientData
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.parameters import ParameterLayout
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.engine import make_optimizer


def check_uploads(
    config: Config,
    model: nn.Module,
    layout: ParameterLayout,
    theta: Tensor,
    num_samples: NDArray[np.int64],
    num_classes: int,
) -> None:
    """Refuse a run whose server needs more of the clients of a round than ``resources.server_memory`` holds.

    That is what each sends for itself, and what the server keeps of each. Also runs what an algorithm's server does before
    the first round, so that what it misses is said now.

    Raises:
        ConfigError: it does; names the largest cohort that fits.
    """
    algorithm = config.algorithm
    server = AlgorithmServer(config, layout, theta, num_samples)
    per_client = 4 * server.rows.layout.size
    if any(upload.weighting == "each" for upload in algorithm.uploads.values()):
        per_client += 4 * sum(upload_sizes(config, model, server, layout, theta, num_classes).values())
    limit = int(config.resources.server_memory * 2**30)
    if config.cohort_size * per_client > limit:
        fits = limit // per_client
        hint = f"take cohort.size={fits} or less, or raise the limit" if fits else "not even one fits: raise the limit"
        raise ConfigError(
            f"resources.server_memory: the server of {algorithm.name} needs {per_client / 1e6:,.2f} MB of each client of a "
            f"round, {config.cohort_size * per_client / 2**30:,.2f} GiB of {config.cohort_size:,}, and may take "
            f"{config.resources.server_memory:g} GiB: {hint}"
        )


def upload_sizes(
    config: Config,
    model: nn.Module,
    server: AlgorithmServer,
    layout: ParameterLayout,
    theta: Tensor,
    num_classes: int,
) -> dict[str, int]:
    """How many numbers a client sends for the server to see, by name: no step is needed to know."""
    algorithm = config.algorithm
    data = ClientData(torch.ones(()), torch.zeros(num_classes), torch.zeros(()))
    sent, messages = server.sent(), server.messages(0, np.zeros(1, np.int64))
    optimizer = make_optimizer(config.train.optimizer, config.train.optimizer.lr)
    rounds = config.rounds if algorithm.depends_on_rounds else None
    # Left to autograd, which needs no check of itself; a copy, since that changes the model.
    own = FunctionalModel(copy.deepcopy(model).requires_grad_(False), layout, second_derivatives=True)
    context = ClientContext(
        own, layout, sent, optimizer, optimizer.lr, config.train.batch_size, 0, rounds, _client=data
    )
    state = {**algorithm.client_state(theta, layout), **{name: rows[0] for name, rows in messages.items()}}
    uploads, _ = algorithm.client_final(algorithm.client_init(state, context), context)
    return {name: uploads[name].numel() for name, up in algorithm.uploads.items() if up.weighting == "each"}
