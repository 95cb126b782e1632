import copy

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from raysim.functional.model_parts import set_fused_attention
from raysim.functional.trimmed_block import trim_last_block
from raysim.plugins.lora import add_lora
from raysim.plugins.prefix import add_prefix
from raysim.plugins.prompt import add_prompt

SMALL = {"img_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
MODELS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "registers, layer scale, norms": ("vit_tiny_patch16_224", {"reg_tokens": 2, "init_values": 0.1, "qk_norm": True}),
    "no biases": ("vit_tiny_patch16_224", {"qkv_bias": False, "scale_attn_norm": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
}


def pair(name, arguments, plugin=None):
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **arguments})
    if plugin:
        plugin(model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, copy.deepcopy(model)


def check(model, trimmed):
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    flops = []
    for one in (model.eval(), trimmed.eval()):
        with FlopCounterMode(display=False) as counter:
            one(images)
        flops.append(counter.get_total_flops())
        for parameter, gradient in zip(
            one.parameters(), torch.autograd.grad(one(images).square().sum(), one.parameters()), strict=True
        ):
            parameter.grad = gradient
    torch.testing.assert_close(trimmed(images), model(images), rtol=1e-5, atol=1e-5)
    for (name, expected), got in zip(model.named_parameters(), trimmed.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=name)
    return flops[1] / flops[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_function_for_less(name, fused):
    model, trimmed = pair(*MODELS[name])
    for one in (model, trimmed):
        set_fused_attention(one, fused)
    assert trim_last_block(trimmed)
    assert check(model, trimmed) < 0.85


@pytest.mark.parametrize("plugin", [lambda m: add_prefix(m, 3, 0.8), lambda m: add_lora(m, 2, 0.8)])
def test_plugins_at_the_projection_see_all_tokens(plugin):
    model, trimmed = pair("vit_tiny_patch16_224", {}, plugin)
    assert trim_last_block(trimmed)
    assert check(model, trimmed) < 0.85


def test_models_that_use_other_tokens_stay_as_they_are():
    average, _ = pair("vit_tiny_patch16_224", {"global_pool": "avg"})
    prompts, _ = pair("vit_tiny_patch16_224", {}, lambda m: add_prompt(m, 2))
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5)
    parallel = timm.create_model("vit_small_patch16_18x2_224", depth=1, num_classes=5)  # its blocks have no ``attn``
    for model in (average, prompts, swin, parallel):
        assert not trim_last_block(model)
