import pytest
import safetensors.torch
import torch

from raysim.algorithms import ALGORITHMS
from raysim.config.sections.training import ModelConfig
from raysim.errors import ConfigError
from raysim.models.build import build_model, tokens_per_image

KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
FEDAVG, FEDPERFIX = ALGORITHMS["fedavg"](), ALGORITHMS["fedperfix"](mid_dim=4)


def build(algorithm=FEDAVG, num_classes=5, seed=0, **keys):
    return build_model(ModelConfig(**{"image_size": 8, "kwargs": KWARGS, **keys}), algorithm, num_classes, 3, seed)


def test_the_seed_decides_the_initial_parameters_and_nothing_else_does():
    torch.manual_seed(1)
    first = build()
    torch.manual_seed(2)
    second, other = build(), build(seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_building_leaves_torchs_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_the_prefix_keeps_timms_names(name):
    plain, prefixed = build(name=name), build(FEDPERFIX, name=name)
    assert plain.state_dict().keys() < prefixed.state_dict().keys()
    added = prefixed.state_dict().keys() - plain.state_dict().keys()
    assert all(key.startswith("blocks.0.attn.qkv.adapter.") for key in added)
    assert prefixed(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_the_prefix_changes_keys_and_values_only():
    model = build(FEDPERFIX)
    qkv, x = model.blocks[0].attn.qkv, torch.randn(2, 5, 16)
    plain = torch.nn.functional.linear(x, qkv.weight, qkv.bias)
    prefix = qkv.adapter.up(torch.tanh(qkv.adapter.down(x)))
    torch.testing.assert_close(qkv(x), plain + 1.5 * torch.cat([torch.zeros(2, 5, 16), prefix], dim=-1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "vit_tinny_patch16_224"},
            "timm has no model 'vit_tinny_patch16_224'; the nearest are vit_tiny_patch16_224",
        ),
        (
            {"name": "vit_tiny_patch16_224.augreg_in21k_", "kwargs": KWARGS},
            "timm can't build vit_tiny_patch16_224.augreg_in21k_ .*[Tt]ag",
        ),
        ({"kwargs": {"embed_dims": 3}}, "model: timm can't build vit_tiny_patch16_224 .*embed_dims"),
        ({"image_size": 8, "kwargs": {"num_heads": 7}}, "model: timm can't build"),
        ({"image_size": 8, "kwargs": {"num_heads": 0}}, "model: timm can't build .*num_heads"),
        ({"image_size": 8, "kwargs": {"patch_size": "x"}}, "model: timm can't build"),
    ],
)
def test_wrong_models(keys, message):
    with pytest.raises(ConfigError, match=message):
        build(**keys)


def test_a_model_without_qkv_has_no_place_for_the_prefix():
    with pytest.raises(ConfigError, match="no self-attention layer with a linear `qkv`"):
        build(FEDPERFIX, name="mixer_s32_224", image_size=32, kwargs={})


def test_weights_that_can_not_be_fetched_say_what_to_download(monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(
        ConfigError, match=r"no network[\s\S]*huggingface\.co/timm/vit_tiny_patch16_224\.augreg[\s\S]*model\.weights="
    ):
        build(pretrained=True)


def test_weights_from_a_file_go_into_model_and_plugin(tmp_path):
    source = build(FEDPERFIX, seed=5)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "all.safetensors")
    loaded = build(FEDPERFIX, weights=str(tmp_path / "all.safetensors"))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_weights_of_another_size_and_number_of_classes(tmp_path):
    source = build(num_classes=7, seed=5)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build(FEDPERFIX, image_size=16, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(loaded.patch_embed.proj.weight, source.patch_embed.proj.weight)
    assert torch.equal(loaded.pos_embed[:, 0], source.pos_embed[:, 0])
    assert loaded.pos_embed.shape == (1, 17, 16)
    fresh = build(FEDPERFIX, image_size=16)
    assert torch.equal(loaded.head.weight, fresh.head.weight)
    assert torch.equal(loaded.blocks[0].attn.qkv.adapter.up.weight, fresh.blocks[0].attn.qkv.adapter.up.weight)


def test_a_file_without_a_head_leaves_the_models_own(tmp_path):
    source = build(seed=5)
    weights = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head")}
    safetensors.torch.save_file(weights, tmp_path / "backbone.safetensors")
    loaded, fresh = build(weights=str(tmp_path / "backbone.safetensors")), build()
    assert torch.equal(loaded.head.weight, fresh.head.weight)
    assert torch.equal(loaded.norm.weight, source.norm.weight)
    assert torch.equal(loaded.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_colour_weights_on_grey_images_are_summed_over_channels_as_timm_does(tmp_path):
    source = build(seed=5)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    config = ModelConfig(image_size=8, kwargs=KWARGS, weights=str(tmp_path / "w.safetensors"))
    grey = build_model(config, FEDAVG, 5, 1, 0)
    expected = source.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, expected)


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    safetensors.torch.save_file(build(seed=5).state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(build(weights="~/w.safetensors").head.weight, build(seed=5).head.weight)


def test_a_resnet_takes_images_of_any_size_and_has_its_head_replaced(tmp_path):
    small = {"name": "resnet50", "kwargs": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4}}
    source = build(num_classes=7, seed=5, **small)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = build(image_size=20, weights=str(tmp_path / "w.safetensors"), **small)
    assert torch.equal(loaded.conv1.weight, source.conv1.weight)
    assert torch.equal(loaded.fc.weight, build(**small).fc.weight)
    assert loaded(torch.zeros(2, 3, 20, 20)).shape == (2, 5)


def test_wrong_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(ConfigError, match="there is no file"):
        build(weights=str(path))
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        build(weights=str(path))
    with pytest.raises(ConfigError, match="there is no file"):
        build(weights=str(tmp_path))
    odd = build().state_dict()
    for name, shape in (("pos_embed", (1, 8, 16)), ("norm.weight", (7,)), ("patch_embed.proj.weight", (16, 5, 4, 4))):
        safetensors.torch.save_file(odd | {name: torch.zeros(shape)}, path)
        with pytest.raises(ConfigError, match=rf"{name} is .* in the file and .* in the model"):
            build(weights=str(path))
    safetensors.torch.save_file({"blocks.0.other": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match=r"Only in the file: blocks\.0\.other\. Only in the model: blocks\.0\.attn"):
        build(weights=str(path))


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_a_model_that_never_calls_the_plugin_is_refused(name):
    patch = 16 if "16" in name else 14
    kwargs = {"patch_size": patch, "embed_dim": 16, "depth": 1, "num_heads": 2}
    with pytest.raises(ConfigError, match="never uses the plugin's"):
        build(FEDPERFIX, name=name, image_size=2 * patch, kwargs=kwargs)


def test_a_model_that_can_not_take_the_images():
    with pytest.raises(ConfigError, match="can't take images of 8 pixels|can't build"):
        build(image_size=8, kwargs={"patch_size": 16})


def test_tokens():
    assert tokens_per_image(build(), 8) == 5
