"""The tiny task on which reference implementations of federated methods were run; see ``tests/data/README.md``."""

from pathlib import Path

import numpy as np
import timm
import torch

from raysim.bench.one_process import OneProcess
from raysim.data.partition import Partition
from raysim.models.build import build_model
from raysim.training.engine import layout_of

from configs import tiny
from simulation import Simulation

NUMBERS = np.load(Path(__file__).parent.parent / "data" / "methods_numbers.npz")
MODEL = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
PLAIN = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=5, **MODEL)
SHAPES = {name: tuple(p.shape) for name, p in PLAIN.named_parameters()}
SIZES = [p.numel() for p in PLAIN.parameters()]
CLIENTS = range(4)


class ParityTask(Simulation):
    """Four clients, three rounds of two epochs, each one batch of all of a client's samples, plain SGD at 0.05.

    Args:
        schedule: ``all`` or ``part``.
        extra: initial values of other parameters than timm's, by name.

    Attributes:
        work: the share of its local steps that each client does; None: all.
    """

    work = None

    def __init__(self, schedule, algorithm, extra=None, local_epochs=2, lr=0.05):
        cohorts = NUMBERS[f"task/schedule_{schedule}"].tolist()
        config = tiny(
            rounds=3,
            data={"num_clients": 4},
            model={"image_size": 16, "kwargs": MODEL},
            algorithm=algorithm,
            train={"local_epochs": local_epochs, "batch_size": 28, "optimizer": {"lr": lr}},
            cohort={"schedule": cohorts},
        )
        self.cohorts = [np.array(cohort) for cohort in cohorts]
        model = build_model(config.model, config.algorithm, 5, 3, 0)
        layout = layout_of(model, config.algorithm)
        pieces = torch.from_numpy(NUMBERS["task/init_flat"]).split(SIZES)
        values = {n: piece.view(shape) for (n, shape), piece in zip(SHAPES.items(), pieces, strict=True)}
        values = {**values, **self.copies(values), **(extra or {})}
        initial = layout.flatten({**model.state_dict(), **values})
        model.load_state_dict(values, strict=False)  # of those that are frozen
        parts = [NUMBERS[f"task/{kind}_{i}"] for i in CLIENTS for kind in ("train", "test")]
        sizes = np.array([len(part) for part in parts])
        offsets = np.concatenate([[0], np.cumsum(sizes)[1::2]])
        partition = Partition(np.concatenate(parts), offsets, sizes[::2])
        images = np.ascontiguousarray(NUMBERS["task/images"].transpose(0, 2, 3, 1))
        OneProcess.__init__(self, config, model, initial, images, NUMBERS["task/labels"], partition)

    @staticmethod
    def copies(values):
        """Heads that start as copies of the model's."""
        kinds, names = ("weight", "bias"), ("personal_head", "head_g")
        return {f"{name}.{kind}": values[f"head.{kind}"] for name in names for kind in kinds}

    def run(self, together=True):
        """All rounds; yields each round's number, from 1, and its results."""
        if self.algorithm.prepares:
            self.prepare()
        for round_, cohort in enumerate(self.cohorts):
            groups = [cohort] if together else [[client] for client in cohort]
            shares = {} if self.work is None else {"work_share": self.work[cohort]}
            yield round_ + 1, self.round(round_, groups, **shares)

    def flat(self, theta):
        """Parameters (P,) or (S,) in timm's order; NaN for those that a vector (S,) has not."""
        layout = self.engine.layout
        names = layout.names if len(theta) == layout.num_parameters else layout.names[: layout.num_shared_tensors]
        have = {name: layout.piece(theta, name).flatten() for name in names}
        missing = (torch.full((size,), torch.nan) for size in SIZES)
        return torch.cat([have.get(n, nan) for n, nan in zip(SHAPES, missing, strict=True)]).numpy()

    def predictor(self, client):
        """A client as it is evaluated after the last round."""
        return self.engine.predictor(3, client, self.broadcast, self.state(client))

    def scores(self, client):
        """Its scores of its test samples."""
        images = self.engine.samples.held_out(np.array([client])).images
        with torch.no_grad():
            return self.predictor(client).scores(self.engine.samples.model_input(images))[0].numpy()


def compare(key, value, atol=1e-5):
    """Compare with the stored numbers; where every 64th entry is stored, with these. NaN is not compared."""
    value = np.asarray(value)
    stored = NUMBERS[key] if key in NUMBERS else NUMBERS[f"{key}[::64]"]
    if key not in NUMBERS:
        value = value.reshape(-1)[::64]
    known = ~np.isnan(value)
    assert known.any()
    np.testing.assert_allclose(value[known], stored.reshape(value.shape)[known], atol=atol, err_msg=key)
