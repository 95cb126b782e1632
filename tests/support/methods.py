"""Methods of the literature in the shortest form that uses each part of the contract, and methods that misbehave.

They show that the contract carries them without a change to the engine; ``docs/algorithms.md`` describes the same ones.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import torch

from raysim.algorithms.base import FederatedAlgorithm, Upload
from raysim.algorithms.fedrep import FedRep


class Known(FederatedAlgorithm):
    """A server that knows its clients one by one: it keeps the last model of each, and sends each another one."""

    uploads = {"shared": Upload(), "own": Upload("each")}
    self_weight: float = 0.5

    def server_init(self, shared, ctx):
        return {"mean": shared.clone()}

    def server_row(self, ctx):
        return {"own": ctx.initial + 0.01 * torch.randn(len(ctx.initial), generator=ctx.generator)}

    def server_messages(self, shared, server_state, clients, ctx):
        return {"cloud": self.self_weight * clients.rows["own"] + (1 - self.self_weight) * server_state["mean"]}

    def server_step_each(self, shared, server_state, mean, clients, ctx):
        return mean["shared"], {"mean": clients.uploads["own"].mean(dim=0)}, {"own": clients.uploads["own"]}

    def client_state(self, theta, layout):
        return {"own": theta.clone()}

    def client_init(self, state, ctx):
        return {"theta": state["cloud"]}

    def client_step(self, carry, batch, ctx):
        gradient, loss = ctx.gradient(carry["theta"], batch)
        return {"theta": ctx.optimizer.step(carry["theta"], gradient, {})[0]}, {"loss": loss}

    def client_final(self, carry, ctx):
        return {"shared": carry["theta"], "own": carry["theta"]}, {"own": carry["theta"]}

    def personalize(self, shared, state, ctx):
        return state["own"] if ctx.as_trained else state["cloud"]


class Masked(FederatedAlgorithm):
    """A client trains every third parameter, other ones in each round, and counts in one of two means of its bias."""

    uploads = {
        "shared": Upload(mask="trains"),
        "trains": Upload(known=True, scale_bits=60),
        "bias": Upload("uniform", groups="group"),
        "group": Upload("uniform"),
    }

    def server_init(self, shared, ctx):
        return {"bias": torch.zeros(2, 10)}

    def server_messages(self, shared, server_state, clients, ctx):
        return {"id": clients.ids[:, None].float()}

    def server_step(self, shared, server_state, mean, ctx):
        bias = torch.where(mean["bias"].isnan(), server_state["bias"], mean["bias"])
        return mean["shared"], {"bias": bias.float()}

    def _trains(self, state, ctx):
        position = torch.arange(ctx.layout.num_shared, device=state["id"].device)
        return (position + state["id"] + ctx.round) % 3 == 0

    def client_init(self, state, ctx):
        return {**super().client_init(state, ctx), "id": state["id"]}

    def gradient(self, carry, batch, ctx):
        gradient, loss = ctx.gradient(carry["theta"], batch)
        return gradient * self._trains(carry, ctx), loss

    def client_final(self, carry, ctx):
        uploads, state = super().client_final(carry, ctx)
        group = torch.stack([carry["id"] % 2 == 0, carry["id"] % 2 == 1]).flatten().float()
        more = {"trains": self._trains(carry, ctx).float(), "group": group, "bias": ctx.client.class_counts}
        return uploads | more, state


class Heavy(FederatedAlgorithm):
    """Client 1 counts so much in one of two means that no fixed point holds it."""

    uploads = {"shared": Upload(), "value": Upload("uniform", groups="group"), "group": Upload("uniform")}

    def server_messages(self, shared, server_state, clients, ctx):
        return {"id": clients.ids[:, None].float()}

    def client_init(self, state, ctx):
        return {**super().client_init(state, ctx), "id": state["id"]}

    def client_final(self, carry, ctx):
        uploads, state = super().client_final(carry, ctx)
        weight = torch.where(carry["id"] == 1, 4e6, 1.0)
        return {**uploads, "value": torch.full_like(weight, 4e6), "group": torch.cat([weight, 0 * weight])}, state


class UsesItsModel(FederatedAlgorithm):
    """Sends the server its logits of an image of ones."""

    uploads = {"shared": Upload(), "logits": Upload("each")}

    def client_final(self, carry, ctx):
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "logits": ctx.logits(carry["theta"], torch.ones(1, 1, 8, 8)).flatten()}, state


class SendsEach(FederatedAlgorithm):
    """Its shared parameters have no mean."""

    uploads = {"shared": Upload("each")}

    def server_step_each(self, shared, server_state, mean, clients, ctx):
        return clients.uploads["shared"].mean(dim=0), server_state, clients.rows


CONTRACT = [Known, Masked, SendsEach]


class Told(FederatedAlgorithm):
    """Uploads what it is told of its data and steps, and counts its steps; and keeps it."""

    uploads = {"shared": Upload(), "told": Upload("uniform")}
    skips: bool = False

    def epochs(self, local_epochs):
        return ["a", "b", "c"]

    def takes_part(self, state, phases, ctx):
        even = torch.remainder(ctx.client.num_samples, 2) == 0
        return torch.stack([even if phase == "a" and self.skips else even | True for phase in phases])

    def client_state(self, theta, layout):
        return {"told": torch.zeros(13)}

    def client_init(self, state, ctx):
        theta = ctx.broadcast["shared"].clone()
        return {"theta": theta, "optimizer": ctx.optimizer.init(theta), "count": theta.new_zeros(1)}

    def client_step(self, carry, batch, ctx):
        carry, metrics = super().client_step(carry, batch, ctx)
        return {**carry, "count": carry["count"] + 1}, metrics

    def client_final(self, carry, ctx):
        data = ctx.client
        told = torch.cat([data.num_samples[None], data.num_steps[None], carry["count"], data.class_counts])
        return {"shared": carry["theta"], "told": told}, {"told": told}

    def personalize(self, shared, state, ctx):
        return shared + 0 * ctx.client.class_counts.sum()


# Methods that misbehave.


class Poisoned(FederatedAlgorithm):
    """Every client whose training set has an odd number of label 0 sends NaN; personal head."""

    def personal_patterns(self):
        return ["head"]

    def client_init(self, state, ctx):
        return {**super().client_init(state, ctx), "zeros": ctx.broadcast["shared"].new_zeros(())}

    def client_step(self, carry, batch, ctx):
        new, metrics = super().client_step(carry, batch, ctx)
        zeros = carry["zeros"] + ((batch.labels == 0) * batch.mask).sum()
        return {**new, "zeros": zeros}, metrics

    def client_final(self, carry, ctx):
        uploads, state = super().client_final(carry, ctx)
        is_odd = torch.remainder(carry["zeros"], 2) == 1
        return {"shared": torch.where(is_odd, torch.nan, uploads["shared"])}, state


class NegativeWeight(FederatedAlgorithm):
    """Every client whose number of training samples is odd weighs itself with less than nothing."""

    uploads = {"shared": Upload(times="weight"), "weight": Upload()}

    def client_final(self, carry, ctx):
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "weight": 1 - 2 * torch.remainder(ctx.client.num_samples, 2)[None]}, state


class Buggy(FederatedAlgorithm):
    """Raises in training."""

    def client_step(self, carry, batch, ctx):
        raise ZeroDivisionError("a bug in my method")


class OutOfMemory(FederatedAlgorithm):
    """Has no room for more than one client at a time."""

    def client_init(self, state, ctx):
        if torch._C._functorch.is_batchedtensor(state["personal"]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().client_init(state, ctx)


class OneInTraining(FedRep):
    """Reports a metric in one of its phases only."""

    def client_step(self, carry, batch, ctx):
        carry, metrics = super().client_step(carry, batch, ctx)
        return carry, metrics | ({"one": torch.ones(())} if ctx.phase == "body" else {})


class Scalar(FederatedAlgorithm):
    """Uploads a number in place of a vector."""

    def client_final(self, carry, ctx):
        return {"shared": carry["theta"].sum()}, {"personal": carry["theta"][:0]}


class Slow(FederatedAlgorithm):
    """Takes its time; personal head."""

    pause: float = 0.05

    def personal_patterns(self):
        return ["head"]

    def client_step(self, carry, batch, ctx):
        time.sleep(self.pause)
        return super().client_step(carry, batch, ctx)


class FailsOnce(FederatedAlgorithm):
    """Raises in the third round if there is a file ``fuse``, which it takes away."""

    fuse: str

    def client_final(self, carry, ctx):
        if ctx.round == 2 and Path(self.fuse).exists():
            Path(self.fuse).unlink(missing_ok=True)
            raise RuntimeError("short circuit")
        return super().client_final(carry, ctx)


class KillsItsActor(FederatedAlgorithm):
    """Kills its process at its ``at``-th client of the second round, as often as there are files in ``folder``.

    With ``error`` it raises what torch raises when a process can't use its GPU any more.
    """

    folder: str
    at: int = 1
    error: str = ""

    def personal_patterns(self):
        return ["head"]

    def client_final(self, carry, ctx):
        if ctx.round == 1:
            TRAINED[self.folder] += 1
        for lives in Path(self.folder).glob("*") if TRAINED[self.folder] == self.at else ():
            lives.unlink(missing_ok=True)
            if self.error:
                raise RuntimeError(self.error)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().client_final(carry, ctx)


class KnownKillsItsActor(KillsItsActor, Known):
    """The same of a server that knows its clients: what they sent for it is lost with the actor, too."""

    def personal_patterns(self):
        return []


class MaskedKillsItsActor(KillsItsActor, Masked):
    """The same of masks and groups."""

    def personal_patterns(self):
        return []


TRAINED: Counter[str] = Counter()  # by folder, in this process
