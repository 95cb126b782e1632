"""``data.normalize: auto``."""

import pytest
import timm

from raysim.errors import ConfigError
from raysim.models.normalization import with_normalization

from configs import tiny

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5], [0.5])
NAMES = [
    "deit_tiny_patch16_224",
    "cait_s24_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
    "vit_small_patch14_dinov2",
]


def resolved(name, channels=3, normalize="auto", **model):
    config = tiny(model={"name": name, "kwargs": {}, **model}, data={"normalize": normalize})
    weights = timm.get_pretrained_cfg(name).to_dict()
    found = with_normalization(config, channels, weights).data.normalize
    return found.mean, found.std


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_weights_get_what_timm_says_of_them(name):
    assert resolved(name, pretrained=True) == IMAGENET
    assert resolved(name) == HALF  # from scratch


def test_a_vit_of_timm_was_trained_with_one_half():
    assert resolved("vit_small_patch16_224", pretrained=True) == HALF


def test_grey_images_get_the_mean_over_the_channels():
    assert resolved("deit_tiny_patch16_224", 1, pretrained=True) == ([0.449], [0.226])


def test_weights_from_a_file_must_be_told_where_timms_would_want_something_else():
    with pytest.raises(ConfigError, match=r"auto can't know .* w.safetensors .* give \{mean: \[0.485"):
        resolved("deit_tiny_patch16_224", weights="w.safetensors")
    given = {"mean": IMAGENET[0], "std": IMAGENET[1]}
    assert resolved("deit_tiny_patch16_224", normalize=given, weights="w.safetensors") == IMAGENET
    assert resolved("vit_small_patch16_224", weights="w.safetensors") == HALF


def test_values_that_do_not_fit():
    with pytest.raises(ConfigError, match="3 values for images of 1 channel"):
        resolved("vit_small_patch16_224", 1, {"mean": IMAGENET[0], "std": IMAGENET[1]})
    with pytest.raises(ValueError, match="mean has 1 values and std 3"):
        resolved("vit_small_patch16_224", 3, {"mean": [0.5], "std": IMAGENET[1]})
