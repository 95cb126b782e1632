"""pFedPT: Visual Prompt Based Personalized Federated Learning.

G. Li, W. Wu, Y. Sun, L. Shen, B. Wu, D. Tao. TMLR 2024. https://arxiv.org/abs/2303.08678

    client i:  p_i by ``prompt_epochs`` of SGD (prompt_lr, momentum 0.5) on the loss of the model w at x + p_i,
               then w_i by local epochs of SGD at x + p_i
    server:    w = sum_i n_i w_i / sum_i n_i

p_i is a frame of ``width`` pixels that is added to the normalised image, zero inside, and begins as N(0, 1), the same for
all clients here. With ``freeze_backbone`` w is the head alone (and a plugin), which the paper has not. Stragglers do all
of the first part.

Down and up: the whole model w. Kept by a client: p_i. (E + prompt_epochs) / E times the cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from raysim.algorithms.base import About, Batch, Carry, ClientContext, FederatedAlgorithm, Tensors, torch
from raysim.errors import ConfigError
from raysim.search_space import Tuned

MOMENTUM = 0.5


class Frame(nn.Module):
    """Adds a learned frame to images (B, C, H, W)."""

    def __init__(self, channels: int, height: int, width: int, size: int) -> None:
        super().__init__()
        self.top, self.bottom = (nn.Parameter(torch.randn(channels, size, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(channels, height - 2 * size, size)) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        inside = self.left.new_zeros(*self.left.shape[:2], self.top.shape[2] - 2 * self.left.shape[2])
        middle = torch.cat([self.left, inside, self.right], dim=2)
        return images + torch.cat([self.top, middle, self.bottom], dim=1)


class PFedPT(FederatedAlgorithm):
    """Each client learns a frame around its images, and all train the shared model inside of it."""

    paper = "https://arxiv.org/abs/2303.08678"
    about = About(
        "prompt", sent="S", kept="a frame of pixels", evaluated="inside its frame", cost="(E + prompt_epochs) / E"
    )
    modules = ("frame",)
    whole_phases = ("prompt",)
    one_shared_model = False

    personal: list[str] = ["frame"]
    """Patterns of the personal parameters."""
    width: Annotated[int | None, Tuned([1, 2, 4], "around the authors' 2 for 32 pixels")] = Field(None, ge=1)
    """Pixels of the frame on each side. null: a sixteenth of the image, which is the authors' 2 for 32 pixels."""
    prompt_lr: Annotated[float, Tuned([0.1, 1.0, 10.0, 20.0], "the authors' 1 and 20, and less")] = Field(1.0, gt=0)
    """Learning rate of the frame; 1 in the authors' scripts."""
    prompt_epochs: Annotated[int, Tuned(None, "it adds to the cost")] = Field(5, ge=1)
    """Epochs that train the frame, before those that train the model; 5 in the authors' scripts."""

    def add_modules(self, model: nn.Module) -> None:
        embed: Any = getattr(model, "patch_embed", None)
        side = getattr(embed, "img_size", None)
        if embed is None or side is None:
            raise ConfigError("algorithm.name: pfedpt needs a model that cuts images of a fixed size into patches")
        height, width = side
        pixels = max(1, min(height, width) // 16) if self.width is None else self.width
        if 2 * pixels >= min(height, width):
            raise ConfigError(f"algorithm.width: a frame of {pixels} pixels leaves nothing of {height}x{width} pixels")
        embed.frame = Frame(embed.proj.in_channels, height, width, pixels)
        embed.register_forward_pre_hook(_add_frame)

    def epochs(self, local_epochs: int) -> list[str]:
        return ["prompt"] * self.prompt_epochs + ["train"] * local_epochs

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        carry = super().client_init(state, ctx)
        return {**carry, "prompt_optimizer": ctx.sgd(self.prompt_lr, MOMENTUM).init(carry["theta"])}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta, prompt = carry["theta"], ctx.mask("frame")
        gradient, loss = ctx.gradient(theta, batch)
        if ctx.phase == "prompt":
            sgd = ctx.sgd(self.prompt_lr, MOMENTUM)
            new, optimizer = sgd.step(theta, gradient * prompt, carry["prompt_optimizer"])
            return {**carry, "theta": torch.where(prompt, new, theta), "prompt_optimizer": optimizer}, {
                "prompt_loss": loss
            }
        new, optimizer = ctx.optimizer.step(theta, gradient * ~prompt, carry["optimizer"])
        return {**carry, "theta": torch.where(prompt, theta, new), "optimizer": optimizer}, {"loss": loss}


def _add_frame(embed: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (embed.frame(inputs[0]), *inputs[1:])
