"""The parts of a timm model that a method may use on their own: its representation and its classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raysim.errors import ConfigError


class Representation(nn.Module):
    """A model up to its classifier: images (B, C, H, W) to the representation (B, D), pooled and normalised.

    Raises:
        ConfigError: the model has no ``forward_features`` and ``forward_head``, as all of timm's have.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            raise ConfigError(f"model.name: {type(model).__name__} gives no representation, as timm's models do")
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        assert callable(model.forward_features)
        assert callable(model.forward_head)
        features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return features


def classifier_of(model: nn.Module, heads: Sequence[str]) -> str:
    """The name of the model's classifier, a linear layer on its representation; ``heads`` as in ``ParameterLayout``.

    Raises:
        ConfigError: it has none or several, such as a distilled DeiT.
    """
    if len(heads) != 1 or not isinstance(model.get_submodule(heads[0]), nn.Linear):
        raise ConfigError(
            f"model.name: {type(model).__name__} has no single linear classifier on its representation (it has "
            f"{', '.join(heads)}), and this method needs one. vit_*, cait_*, swin_* and resnet* models have"
        )
    return heads[0]


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Switch timm's fused attention kernels on or off."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 - a plain attribute, which torch's types do not know
