"""A new model is tried on one image."""

import pytest
import torch

from raysim.errors import ConfigError
from raysim.models.build import build_model

from configs import tiny


def build(name, side, **kwargs):
    config = tiny(model={"name": name, "image_size": side, "kwargs": kwargs}, algorithm={"name": "fedavg"})
    return build_model(config.model, config.algorithm, 10, 3, 0)


SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "side", "kwargs", "message"),
    [
        ("vit_tiny_patch16_224", 222, {"depth": 1}, "12 % of images of 222 pixels .*; take 208 or 224"),
        ("vit_small_patch14_dinov2", 32, {"depth": 1}, "23 % of images of 32 pixels .*; take 28 or 42"),
        ("swin_tiny_patch4_window7_224", 58, {}, "7 % of images of 58 pixels .*; take 56 or 60"),
        ("vit_tiny_patch16_224", 10, SMALL, "36 % of images of 10 pixels .*; take 8 or 12"),
        ("vit_tiny_patch16_224", 5, SMALL, "36 % of images of 5 pixels .*; take 4 or 8"),
    ],
)
def test_pixels_that_never_reach_the_model_are_told(name, side, kwargs, message):
    with pytest.raises(ConfigError, match=f"model.image_size: {message}"):
        build(name, side, **kwargs)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_tiny_patch16_224", 32),
        ("swin_tiny_patch4_window7_224", 32),
        ("resnet18", 33),  # its residual branches end in zeros, and its shortcuts skip every other pixel
        ("mobilenetv3_small_100", 31),
        ("inception_v3", 96),  # convolutions that leave out a border
        ("convnext_atto", 33),
    ],
)
def test_models_that_see_all_of_an_image_keep_their_parameters(name, side):
    model, again = build(name, side), build(name, side)
    assert model.training
    for (key, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), key
    if name == "resnet18":
        assert not model.layer1[0].bn2.weight.any()  # zeros as before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_head_of_zeros_hides_nothing():
    assert not build("vit_tiny_patch16_224", 8, weight_init="jax", **SMALL).head.weight.any()
    with pytest.raises(ConfigError, match="36 % of images of 10 pixels"):
        build("vit_tiny_patch16_224", 10, weight_init="jax", **SMALL)


def test_logits_that_are_not_one_per_class_are_refused():
    with pytest.raises(ConfigError, match=r"gives \(1, 5, 10\) numbers for an image, not one for each of 10 classes"):
        build("vit_tiny_patch16_224", 8, global_pool="", **SMALL)


def test_a_models_own_size_is_right_whatever_it_sees():
    """384 pixels in patches of 14 leave a border of 6, on which its weights were trained."""
    build("vit_so400m_patch14_siglip_384", 384, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="take 378 or 392"):
        build("vit_so400m_patch14_siglip_384", 380, embed_dim=16, depth=1, num_heads=2)


def test_a_model_that_was_accepted_before_is_built_again():
    config = tiny(
        model={"name": "vit_tiny_patch16_224", "image_size": 10, "kwargs": SMALL}, algorithm={"name": "fedavg"}
    )
    build_model(config.model, config.algorithm, 10, 3, 0, new=False)
