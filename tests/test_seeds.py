import numpy as np
import pytest

from raysim import seeds


def test_streams_are_reproducible_and_differ_in_every_argument():
    draws = {
        arguments: seeds.stream(*arguments).random(4).tobytes()
        for arguments in [
            (0, "batches", 0, 0),
            (1, "batches", 0, 0),
            (0, "cohort", 0, 0),
            (0, "batches", 1, 0),
            (0, "batches", 0, 1),
        ]
    }
    assert len(set(draws.values())) == 5
    assert all(seeds.stream(*arguments).random(4).tobytes() == draw for arguments, draw in draws.items())


def test_round_and_client_are_not_interchangeable():
    assert seeds.torch_seed(0, "dropout", 1, 2) != seeds.torch_seed(0, "dropout", 2, 1)


def test_the_streams_of_a_release_stay_as_they_are():
    # A change here changes every published number: it needs a line under "Breaking" in the changelog.
    assert np.allclose(seeds.stream(0, "cohort", 3).random(2), EXPECTED)


def test_unknown_purpose():
    with pytest.raises(ValueError, match="tuple"):
        seeds.stream(0, "weather")


EXPECTED = (0.029515163672651945, 0.26452939468157344)
