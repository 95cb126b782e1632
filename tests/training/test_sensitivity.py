import pytest
import timm

from raysim.functional.parameters import ParameterLayout
from raysim.training.sensitivity import layer_type, shared_types


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
