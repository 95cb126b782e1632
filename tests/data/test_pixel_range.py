"""What images in a range are: made by the usual normalisations, as torchvision makes them."""

import numpy as np
import pytest
import torch
from torchvision.transforms import Normalize

from raysim.config.sections.data import DataConfig
from raysim.data.pixel_range import KNOWN, looks_like, range_of
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError


@pytest.mark.parametrize("name", KNOWN)
def test_usual_normalisations_are_recognised(name):
    mean, std = KNOWN[name]
    images = torch.rand(50, len(mean), 8, 8, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    array = Normalize(mean, std)(images).numpy()
    with pytest.raises(ConfigError, match=r"images of client 3 go from .*deviation .* of") as found:
        range_of(array, "client 3")
    assert f"of {name}: save them as they were before (x * std + mean)" in str(found.value)


def test_other_ranges_are_not_given_a_name():
    assert looks_like(-1.0, 1.0) == looks_like(0.0, 16.0) == looks_like(-3.0, 3.0) == looks_like(-2.1179, 0.3) == ""


def test_an_npz_of_normalised_images_is_told_what_it_has(tmp_path):
    mean, std = (np.array(values).reshape(1, 1, 1, 3) for values in KNOWN["ImageNet"])
    images = np.linspace(0, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    images[0, 0, 0], images[1, 3, 3] = 0, 1
    np.savez(tmp_path / "mine.npz", images=(images - mean) / std, labels=np.array([0, 1]))
    with pytest.raises(ConfigError, match=r"not uint8 \(n, H, W\[, C\]\)\. They look normalised .* of ImageNet"):
        load_dataset(DataConfig(name="npz", root=str(tmp_path / "mine.npz")), 4)
