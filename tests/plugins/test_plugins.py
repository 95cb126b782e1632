"""Plugins by their formulas, on three families of timm models."""

import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.config.sections.training import ModelConfig
from raysim.errors import ConfigError
from raysim.models.build import build_model
from raysim.plugins.registry import PLUGINS
from raysim.training.engine import layout_of

FAMILIES = {
    "vit_tiny_patch16_224": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "cait_xxs24_224": {"patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "patch_size": 1,
        "embed_dim": 8,
        "depths": (2, 1),
        "num_heads": (1, 2),
        "window_size": 2,
    },
}


def build(plugin, family="vit_tiny_patch16_224", seed=0, **keys):
    algorithm = ALGORITHMS["fedperfix"](plugin=plugin, **keys)
    return build_model(ModelConfig(name=family, image_size=8, kwargs=FAMILIES[family]), algorithm, 5, 3, seed)


def plain(family="vit_tiny_patch16_224"):
    return build_model(ModelConfig(name=family, image_size=8, kwargs=FAMILIES[family]), ALGORITHMS["fedavg"](), 5, 3, 0)


def names(model):
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_plugin_on_every_family(plugin, family):
    if plugin == "prompt" and family.startswith("swin"):
        with pytest.raises(
            ConfigError, match=r"prompts need blocks that take a sequence .* SwinTransformerBlock takes"
        ):
            build(plugin, family)
        return
    model = build(plugin, family, **({"mid_dim": 3} if PLUGINS[plugin].mid_dim else {}))
    added = names(model) - names(plain(family))
    assert names(plain(family)) < names(model)
    assert all(PLUGINS[plugin].component in name.split(".") for name in added)
    blocks = {".".join(name.split(".")[: 4 if family.startswith("swin") else 2]) for name in added}
    assert len(blocks) == 3
    # Every parameter of the plugin learns: if not in the first step (a zero layer hides what is before it), in the second.
    model.train()
    for _ in range(2):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if name in added)


@pytest.mark.parametrize("plugin", ["adapter", "lora", "prefix_zero"])
def test_plugins_that_start_at_zero_start_as_the_plain_model(plugin):
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(build(plugin).eval()(images), plain().eval()(images))


@pytest.mark.parametrize("plugin", ["prefix", "prefix_random", "prompt"])
def test_the_others_do_not(plugin):
    images = torch.randn(2, 3, 8, 8)
    assert not torch.allclose(build(plugin).eval()(images), plain().eval()(images), atol=1e-4)


def fill(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_prefix_by_its_formula():
    qkv, x = fill(build("prefix", mid_dim=3, scale=0.7).blocks[1].attn.qkv), torch.randn(2, 5, 16)
    adapter = qkv.adapter
    extra = torch.tanh(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    expected = x @ qkv.weight.T + qkv.bias + 0.7 * torch.cat([torch.zeros(2, 5, 16), extra], dim=-1)
    torch.testing.assert_close(qkv(x), expected, atol=1e-4, rtol=1e-4)


def test_plain_prefix_by_its_formula():
    qkv, x = fill(build("prefix_random", scale=0.7).blocks[1].attn.qkv), torch.randn(2, 5, 16)
    extra = x @ qkv.adapter.kv.weight.T + qkv.adapter.kv.bias
    expected = x @ qkv.weight.T + qkv.bias + 0.7 * torch.cat([torch.zeros(2, 5, 16), extra], dim=-1)
    torch.testing.assert_close(qkv(x), expected, atol=1e-4, rtol=1e-4)


def test_adapter_by_its_formula():
    mlp, x = fill(build("adapter", mid_dim=3, scale=0.7).blocks[1].mlp), torch.randn(2, 5, 16)
    a = mlp.adapter
    extra = torch.relu(x @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias
    expected = mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x))) + 0.7 * extra
    torch.testing.assert_close(mlp(x), expected, atol=1e-4, rtol=1e-4)


def test_lora_by_its_formula():
    qkv, x = fill(build("lora", mid_dim=3, scale=0.7).blocks[1].attn.qkv), torch.randn(2, 5, 16)
    weight = qkv.weight + 0.7 * qkv.lora.up.weight @ qkv.lora.down.weight
    torch.testing.assert_close(qkv(x), x @ weight.T + qkv.bias, atol=1e-4, rtol=1e-4)


def test_prompts_join_the_sequence_and_leave_it():
    model = build("prompt", mid_dim=3).eval()
    bare = plain().eval()
    bare.load_state_dict({n: v for n, v in model.state_dict().items() if "prompt" not in n})
    block, x = model.blocks[1], torch.randn(2, 5, 16)
    prompt = block.prompt.expand(2, -1, -1)
    expected = bare.blocks[1](torch.cat([x[:, :1], prompt, x[:, 1:]], dim=1))  # after the class token, as in the paper
    torch.testing.assert_close(block(x), expected[:, [0, 4, 5, 6, 7]])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_only_the_last_blocks(plugin):
    added = names(build(plugin, plugin_depth=1)) - names(plain())
    assert added
    assert all(name.startswith("blocks.2.") for name in added)
    with pytest.raises(ConfigError, match=r"algorithm.plugin_depth: the last 9 .* VisionTransformer has 3"):
        build(plugin, plugin_depth=9)


def test_timms_attention_is_not_slowed_by_a_zero_block_for_the_queries():
    """The prefix computes 2 D outputs per token, not 3 D."""
    assert build("prefix", mid_dim=3).blocks[0].attn.qkv.adapter.up.weight.shape == (32, 3)


def test_a_distilled_models_heads_are_its_head():
    family = "deit_tiny_distilled_patch16_224"
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    for name, keys in (
        ("fedper", {}),
        ("fedperfix", {"plugin": "lora", "freeze_backbone": True, "personal": ["head"]}),
    ):
        algorithm = ALGORITHMS[name](**keys)
        model = build_model(ModelConfig(name=family, image_size=8, kwargs=FAMILIES[family]), algorithm, 5, 3, 0)
        layout = layout_of(model, algorithm)
        assert set(layout.names[layout.num_shared_tensors :]) == heads
        assert not heads & set(layout.frozen)


def test_a_pattern_of_frozen_parameters_keeps_nothing_personal_and_is_refused():
    algorithm = ALGORITHMS["fedperfix"](freeze_backbone=True, personal=["norm*"])
    with pytest.raises(ConfigError, match=r"algorithm.personal: the pattern 'norm\*' matches only frozen parameters"):
        layout_of(build("prefix"), algorithm)
