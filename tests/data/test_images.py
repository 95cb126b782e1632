"""Files as arrays: orientation, transparency, sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from raysim.data.images import TooDeep, image_size, read_image, resize, resized


def test_an_image_is_turned_as_exif_says(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 255  # the first row is bright
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right-hand side
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert image_size(tmp_path / "a.png") == (4, 6)
    read = read_image(tmp_path / "a.png", 3)
    assert read.shape == (6, 4, 3)
    assert read[:, -1].min() == 255
    assert read[:, :-1].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_is_white(tmp_path, mode, channels):
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "a.png", transparency=0)  # entry 0 of the palette is transparent
    else:
        image = Image.new(mode, (2, 1))  # black and transparent
        image.putpixel((1, 0), (0, 255) if mode == "LA" else (0, 0, 0, 255))
        image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", channels)[0].tolist() == [[255] * channels, [0] * channels]


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.full((3, 3), 1000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(TooDeep, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.png", 3)


def test_it_is_the_same_whether_an_image_is_resized_when_stored_or_on_its_way():
    image = np.random.default_rng(0).integers(0, 256, (23, 40, 3), dtype=np.uint8)
    stored = resized(image, 8)
    assert (stored.shape, stored.dtype) == ((8, 8, 3), np.uint8)
    on_its_way = resize(torch.from_numpy(image).permute(2, 0, 1)[None].float(), 8)
    assert torch.equal(on_its_way[0].permute(1, 2, 0), torch.from_numpy(stored).float())
    assert np.array_equal(resized(stored, 8), stored)


@pytest.mark.parametrize("end", ["png", "jpg", "tif"])
def test_the_size_is_that_of_what_is_read(tmp_path, end):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a.{end}"
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(path, exif=exif)
    assert image_size(path) == read_image(path, 3).shape[1::-1]
