"""The yardstick: the same rounds as a loop in plain torch, without any framework, in as many processes as there are actors.

What a careful researcher would write: one process per core with one thread, models built once, the server's weights in
shared memory, each process sums up the updates of its clients. Every client draws the same batches as in raysim, so both
arrive at the same model, up to rounding (a test compares them).
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from raysim import seeds
from raysim.config.schema import Config
from raysim.data.dataset import Dataset
from raysim.data.partition import Partition
from raysim.errors import ConfigError
from raysim.federation.cohort import sample_cohort
from raysim.functional.parameters import ParameterLayout
from raysim.functional.trimmed_block import trim_last_block
from raysim.models.build import build_model

Ints = NDArray[np.int64]
# A method that overrides one of these trains differently from the loop below.
OWN_TRAINING = (
    "broadcast",
    "server_step",
    "client_state",
    "epochs",
    "takes_part",
    "client_init",
    "losses",
    "gradient",
    "client_step",
    "client_final",
    "personalize",
    "predict",
)


def check_is_plain(config: Config) -> None:
    """Refuse what the loop does not do.

    Raises:
        ConfigError: the algorithm or a setting needs more than local training of shared and personal parameters.
    """
    algorithm = config.algorithm
    own = algorithm.has_own(*OWN_TRAINING)
    own += ["frozen parameters"] if algorithm.trainable_patterns() != ["*"] else []
    if own or algorithm.adapt_steps() or algorithm.pooled:
        raise ConfigError(
            "algorithm: the plain loop trains shared and personal parameters together, as fedavg, fedper and fedperfix "
            f"do; {algorithm.name} has {', '.join(own) or 'adaptation'} of its own"
        )
    plain = config.data.augment == "none" and config.train.schedule == "constant" and not config.train.warmup_rounds
    evaluate = config.evaluate
    as_usual = evaluate.clients == "cohort" and evaluate.every == 1 and evaluate.protocol == "paper"
    if not plain or config.train.optimizer.clip_norm is not None or not as_usual or config.cohort.size is None:
        raise ConfigError(
            "the plain loop has no augmentation, schedule, warm-up or gradient clipping and evaluates the cohort in every "
            "round: leave data.augment, train.schedule, warmup_rounds, clip_norm, evaluate.* and cohort.size as they are"
        )


class PlainLoop:
    """Processes that train the cohort of one round after another; a context manager.

    Args:
        shared: (S,) the initial shared parameters.
        personal: (personal,) the initial personal parameters.
        trimmed: leave out what no output depends on in the model's last block.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        partition: Partition,
        shared: Tensor,
        personal: Tensor,
        processes: int,
        trimmed: bool = False,
    ) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._config, self._num_train = config, partition.num_train
        self.shared = shared.clone().share_memory_()
        self._sums = torch.zeros(processes, len(shared)).share_memory_()
        states = torch.zeros(config.data.num_clients, len(personal)).share_memory_()
        trained = torch.zeros(config.data.num_clients, dtype=torch.bool).share_memory_()
        images, labels = (torch.from_numpy(a.copy()).share_memory_() for a in (dataset.images, dataset.labels))
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(processes):
            ours, theirs = context.Pipe()
            arguments = (
                theirs,
                rank,
                config,
                images,
                labels,
                partition,
                self.shared,
                self._sums[rank],
                personal,
                states,
                trained,
                trimmed,
            )
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            pipe.recv()  # it is ready

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def round(self, round: int) -> float:
        """One round; returns the accuracy over all test samples of the cohort."""
        cohort = sample_cohort(self._config, round)
        weights = self._num_train[cohort] / self._num_train[cohort].sum()
        n = len(self._pipes)
        for i, pipe in enumerate(self._pipes):
            pipe.send(("train", round, cohort[i::n], weights[i::n]))
        counts = np.sum([pipe.recv() for pipe in self._pipes], axis=0)
        self.shared.copy_(self._sums.sum(dim=0))
        for i, pipe in enumerate(self._pipes):  # after aggregation, too, as in raysim
            pipe.send(("evaluate", round, cohort[i::n], weights[i::n]))
        for pipe in self._pipes:
            pipe.recv()
        return float(counts[0] / counts[1])

    def __enter__(self) -> PlainLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # ends the process
        for process in self._processes:
            process.join()


def _work(
    pipe: Connection,
    rank: int,
    config: Config,
    images: Tensor,
    labels: Tensor,
    partition: Partition,
    shared: Tensor,
    total: Tensor,
    initial: Tensor,
    states: Tensor,
    has_state: Tensor,
    trimmed: bool,
) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    if config.resources.device == "cuda":  # on all GPUs, as raysim's actors are
        device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    num_classes = int(labels.max()) + 1
    model = build_model(config.model, config.algorithm, num_classes, images.shape[3], config.seed).to(device)
    torch.backends.cuda.matmul.allow_tf32 = config.resources.precision == "tf32"
    if trimmed:
        trim_last_block(model)
    layout = ParameterLayout.of(model, config.algorithm.personal_patterns(), config.algorithm.trainable_patterns())
    sizes = layout.sizes[: layout.num_shared_tensors]
    shares, keeps = layout.names[: layout.num_shared_tensors], layout.names[layout.num_shared_tensors :]
    sums = {n: piece.view(shape) for n, piece, shape in zip(shares, total.split(sizes), layout.shapes, strict=False)}
    pipe.send(None)
    while True:
        try:
            what, round, clients, weights = pipe.recv()
        except EOFError:
            return
        if what == "evaluate":
            hits = 0
            # One model for all clients goes through their samples in one pass.
            for ids in clients[:, None] if keeps else [clients]:
                own = states[ids[0]] if keeps and has_state[ids[0]] else initial
                model.load_state_dict(layout.unflatten(torch.cat([shared, own])), strict=False)
                hits += _hits(model, images, labels, partition.tests(ids), config, device)[0]
            pipe.send(hits)
            continue
        total.zero_()
        correct = seen = 0
        for client, weight in zip(clients.tolist(), weights.tolist(), strict=True):
            own = states[client] if has_state[client] else initial
            model.load_state_dict(layout.unflatten(torch.cat([shared, own])), strict=False)
            rng = seeds.stream(config.seed, "batches", round, client)
            index = partition.train(client)
            orders = rng.permuted(np.tile(np.arange(len(index)), (config.train.local_epochs, 1)), axis=1)
            _train(model, images, labels, [torch.from_numpy(index[order]) for order in orders], config, device)
            hits, tested = _hits(model, images, labels, partition.test(client), config, device)
            correct, seen = correct + hits, seen + tested
            trained = model.state_dict()
            for name, piece in sums.items():
                piece.add_(trained[name].cpu(), alpha=weight)
            if keeps:
                states[client].copy_(torch.cat([trained[name].flatten() for name in keeps]))
                has_state[client] = True
        pipe.send((correct, seen))


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: list[Tensor], config: Config, device: torch.device
) -> None:
    model.train()
    settings = config.train.optimizer
    optimizer: torch.optim.Optimizer
    if settings.name in ("adam", "adamw"):
        kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
        optimizer = kind(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    else:
        decay, nesterov = settings.weight_decay, settings.nesterov
        optimizer = torch.optim.SGD(
            model.parameters(), settings.lr, settings.momentum, weight_decay=decay, nesterov=nesterov
        )
    for index in epochs:
        for batch in index.split(config.train.batch_size):
            optimizer.zero_grad()
            with _precision(config, device):
                logits = model(_input(images[batch], device))
            F.cross_entropy(logits.float(), labels[batch].to(device)).backward()
            optimizer.step()


def _hits(
    model: nn.Module, images: Tensor, labels: Tensor, index: Ints, config: Config, device: torch.device
) -> tuple[int, int]:
    """How many samples are classified correctly, of how many."""
    model.eval()
    hits = 0
    with torch.no_grad(), _precision(config, device):
        for part in torch.from_numpy(index).split(512):
            hits += int((model(_input(images[part], device)).argmax(dim=-1) == labels[part].to(device)).sum())
    return hits, len(index)


def _precision(config: Config, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.resources.precision == "bfloat16")


def _input(images: Tensor, device: torch.device) -> Tensor:
    return images.to(device).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)
