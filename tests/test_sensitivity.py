import numpy as np
import pytest
import timm
import torch
from torch import nn

from raysim.functional.parameters import ParameterLayout
from raysim.training.sensitivity import directions, layer_type, metrics, shared_types


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("patch_embed.proj.weight", "patch_embedding"),
        ("pos_embed", "position_and_class"),
        ("cls_token", "position_and_class"),
        ("blocks.0.norm1.weight", "norm"),
        ("norm.bias", "norm"),
        ("blocks.0.attn.qkv.bias", "qkv"),
        ("blocks.0.attn.qkv.adapter.up.weight", "plugin"),
        ("blocks.0.attn.proj.weight", "attention_projection"),
        ("blocks.0.mlp.fc1.weight", "mlp"),
        ("blocks.0.mlp.adapter.down.weight", "plugin"),
        ("head.weight", "head"),
        ("layer1.0.bn2.bias", "norm"),
        ("layer1.0.conv2.weight", "convolution"),
        ("layer1.0.downsample.1.weight", "norm"),
        ("blocks.0.ls1.gamma", "other"),
    ],
)
def test_types_by_name(name, kind):
    assert layer_type(name) == kind


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224", "cait_xxs24_224"])
def test_few_parameters_of_timms_models_have_no_type(name):
    model = timm.create_model(name, num_classes=5)
    layout = ParameterLayout.of(model)
    other = [n for n, kind in zip(layout.names, shared_types(layout), strict=True) if kind == "other"]
    assert all("gamma" in n or "attn." in n or "reduction" in n for n in other), other
    assert "head" in shared_types(layout)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1, bias=False)
        self.norm = nn.LayerNorm(1)


def measure(updates, weights):
    layout = ParameterLayout.of(Two())
    updates, weights = torch.tensor(updates), np.array(weights) / sum(weights)
    direction, squares = directions(updates, weights, np.ones(len(weights), bool), layout)
    mean = sum(w * u.double() for w, u in zip(weights, updates, strict=True))
    return metrics(
        mean, direction, {k: float((v.double().numpy() * weights).sum()) for k, v in squares.items()}, layout
    )


def test_by_hand():
    # head: (1, 0) and (0, 1) at right angles; norm: (2, 2) and (1, 1) in one direction
    result = measure([[1.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 1.0]], [1, 1])
    assert result["sensitivity/head"] == pytest.approx(1 - np.sqrt(0.5))
    assert result["sensitivity/head_spread"] == pytest.approx(1.0)  # both are as far from the mean as it is long
    assert result["sensitivity/norm"] == pytest.approx(0.0, abs=1e-6)
    assert result["sensitivity/norm_spread"] == pytest.approx(1 / 3)


def test_weights_are_samples_and_what_did_not_move_is_left_out():
    result = measure([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]], [3, 1])
    assert result["sensitivity/head"] == pytest.approx(1 - (0.75 - 0.25))
    assert result["sensitivity/head_spread"] == pytest.approx(np.sqrt(1 - 0.25) / 0.5)
    assert not any("norm" in name for name in result)
