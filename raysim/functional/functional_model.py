"""A timm model as a function of a client's flat parameters, and the gradient of a loss for one client or for K.

Shapes: P parameters, B samples of a batch, D numbers of a representation, images (B, C, H, W).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from raysim.errors import ConfigError
from raysim.functional.batch import Batch
from raysim.functional.gradient import Gradient, Losses, MeanLoss, PlainLoss, backward
from raysim.functional.model_parts import Representation, classifier_of, set_fused_attention
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.functional.written_out.function import gradient_of_one, output_of_one
from raysim.functional.written_out.self_check import agrees
from raysim.functional.written_out.transformer import WrittenOut

Precision = Literal["float32", "tf32", "bfloat16"]


class FunctionalModel:
    """A model whose parameters are arguments; it holds only frozen parameters and constants itself.

    Args:
        precision: of its matrix products; parameters, their gradients and the loss are float32 in any case. ``tf32`` is set
            for the process, not here.
        compiled: run the cross entropy, forward and backward, through ``torch.compile``.
        second_derivatives: leave all gradients to autograd, so that they can be differentiated again.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ParameterLayout,
        precision: Precision = "float32",
        compiled: bool = False,
        second_derivatives: bool = False,
    ) -> None:
        self.model, self.layout, self._precision = model, layout, precision
        self._training = model.training
        self._fused: bool | None = None  # not set yet
        self._modules = list(model.modules())
        self._has_own_train = any(type(module).train is not nn.Module.train for module in self._modules)
        self._cuts: deque[tuple[Tensor, Tensors]] = deque(maxlen=4)
        one, many = self._plain_loss, torch.func.vmap(self._plain_loss, randomness="different")
        if compiled:  # all of it or an error: falling back to eager mode for some parts would go unnoticed
            one, many = torch.compile(one, fullgraph=True), torch.compile(many, fullgraph=True)
        self._compiled, self._plain = compiled, PlainLoss(one, many)
        general = precision == "bfloat16" or compiled or second_derivatives
        self._written = None if general else self._written_out()
        if self._written is None:
            from raysim.functional.trimmed_block import trim_last_block

            trim_last_block(model)

    def _written_out(self) -> WrittenOut | None:
        """The model, written out, if it can be and is the same function."""

        def general(*batch: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.vmap(lambda theta, *parts: self.gradient(theta, Batch(*parts)))(*batch)

        # Not at the top: these modules need timm, which takes two seconds to import, and a configuration has no model yet.
        from raysim.functional.written_out.recognised import written_out

        self._written = None
        written = written_out(self.model, self.layout)
        if written is None:
            return None
        with torch.no_grad(), self.mode(training=False, vectorised=True):
            return written if agrees(written, general, self.model, self.layout) else None

    @contextmanager
    def mode(self, *, training: bool, vectorised: bool) -> Iterator[None]:
        """The mode of the model inside a ``with`` block.

        Args:
            training: dropout and BatchNorm behave as in training.
            vectorised: the block computes K clients under ``vmap``, which has no batching rule for fused attention.
        """
        before = self._training, self._fused
        self._set_mode(training, not vectorised)
        try:
            yield
        finally:
            self._set_mode(*before)
            self._cuts.clear()

    def _set_mode(self, training: bool, fused: bool | None) -> None:
        """Both visit every submodule, so only what is different is set; ``fused`` None leaves it as it is."""
        if self._training != training:
            if self._has_own_train:
                self.model.train(training)
            else:  # what ``train`` does, in a tenth of its time, which is a twentieth of a small client batch's
                for module in self._modules:
                    module.__dict__["training"] = training
            self._training = training
        if fused is not None and self._fused != fused:
            set_fused_attention(self.model, fused)
            self._fused = fused

    # The model and its parts.

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The model at parameters (P,) on images: logits (B, classes), float32."""
        if self._written is not None:
            return output_of_one(self._written, theta, images, "logits")
        return self._call(self.model, self._tensors(theta), images)

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """The representation (B, D) of images before the classifier, float32.

        Raises:
            ConfigError: the model is none of timm's.
        """
        if self._written is not None:
            return output_of_one(self._written, theta, images, "features")
        tensors = {f"model.{name}": tensor for name, tensor in self._tensors(theta).items()}
        return self._call(Representation(self.model), tensors, images)

    def head(self, theta: Tensor, features: Tensor) -> Tensor:
        """The classifier on representations (B, D): logits (B, classes), float32.

        Raises:
            ConfigError: the model has no single classifier.
        """
        return self.module(theta, classifier_of(self.model, self.layout.heads), features)

    def module(self, theta: Tensor, name: str, *inputs: Tensor) -> Tensor:
        """The output, float32, of the model's submodule of that name, with its parameters from ``theta``."""
        start = f"{name}."
        tensors = {n.removeprefix(start): t for n, t in self._tensors(theta).items() if n.startswith(start)}
        return self._call(self.model.get_submodule(name), tensors, *inputs)

    def _call(self, module: nn.Module, tensors: Tensors, *inputs: Tensor) -> Tensor:
        if self._precision != "bfloat16":
            result: Tensor = torch.func.functional_call(module, tensors, inputs)
            return result
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            return torch.func.functional_call(module, tensors, inputs).float()

    def _tensors(self, theta: Tensor) -> Tensors:
        """The tensors in ``theta``, cut out once for all parts of the model: the gradient of that is one ``cat``."""
        for cut, tensors in self._cuts:
            if cut is theta:
                return tensors
        tensors = self.layout.unflatten(theta)
        # BatchNorm in training mode writes into the running statistics that it is given.
        tensors |= {name: tensors[name].detach().clone() for name in self.layout.statistics}
        self._cuts.append((theta, tensors))
        return tensors

    # Losses and their gradients.

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """The mean cross entropy of a batch, a scalar."""
        return batch.mean(self.cross_entropy(theta, batch, ())[0])

    def gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the mean cross entropy of a batch, and the loss; compiled, if the model is."""
        if self.layout.statistics:
            return self.gradient_of(self.cross_entropy, theta, batch, ())[:2]
        if self._written is not None:
            return gradient_of_one(self._written, theta, *batch)
        gradient, loss = Gradient.apply(theta, *batch, self._plain)
        return gradient, loss

    def gradient_of(self, losses: Losses, theta: Tensor, batch: Batch, tensors: Any) -> tuple[Tensor, Tensor, Any]:
        """The gradient (P,) of the mean of ``losses`` over a batch, that mean, and what else ``losses`` returned.

        ``tensors``, any tree, is passed on to ``losses``, which may read a client's tensors only from there.

        Raises:
            ConfigError: the model is compiled, and ``losses`` are not cross entropy.
        """
        if self._compiled:
            raise ConfigError("resources.compile: only cross entropy is compiled, not a loss of a method's own")
        leaves, tree = tree_flatten(tensors)
        mean = MeanLoss(losses, tree)
        if not self.layout.statistics:
            gradient, loss, *more = Gradient.apply(theta, *batch, mean, *leaves)
        else:
            gradient, loss, *more = self._with_statistics(theta, lambda t: mean(t, *batch, *leaves))
        self._cuts.clear()
        return gradient, loss, tree_unflatten(more, mean.more)

    def cross_entropy(self, theta: Tensor, batch: Batch, _: Any) -> tuple[Tensor, Any]:
        """The cross entropy (B,) of each sample."""
        return F.cross_entropy(self.logits(theta, batch.images), batch.labels, reduction="none"), ()

    def _plain_loss(self, theta: Tensor, images: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """``loss`` without an effect on this object, which ``torch.compile`` could not follow."""
        logits = self._call(self.model, self.layout.unflatten(theta), images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (losses * mask).sum() / mask.sum().clamp(min=1)  # half of a split batch may be empty

    def _with_statistics(self, theta: Tensor, loss: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """``backward``, with the change that the batch made to running statistics (old minus new) in the gradient.

        For one client: a model with BatchNorm is never vectorised.
        """
        after: Tensors = {}

        def watched(theta: Tensor) -> tuple[Tensor, ...]:
            after.update(self._tensors(theta))  # these are written to, whatever else the loss computes
            return loss(theta)

        gradient, *rest = backward(theta, watched)
        before, pieces = self.layout.unflatten(theta), self.layout.unflatten(gradient)
        for name in self.layout.statistics:
            pieces[name].copy_(before[name] - after[name])
        return gradient, *rest
