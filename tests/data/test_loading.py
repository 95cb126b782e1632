"""Which runs of a study share a data set."""

import numpy as np

from raysim.data.loading import load_data

from configs import tiny


def test_runs_share_samples_only_if_these_are_the_same():
    cache = {}
    first, _ = load_data(tiny(), cache)
    assert load_data(tiny(seed=3, data={"augment": "flip", "test_fraction": 0.5}), cache)[0] is first
    grey = first.images.shape[3]
    assert load_data(tiny(data={"rgb": True}), cache)[0].images.shape[3] == 3 * grey
    assert len(load_data(tiny(data={"subset": 300}), cache)[0].labels) < len(first.labels)
    rotated = load_data(tiny(data={"rotated_domains": True}), cache)[0]
    assert not np.array_equal(rotated.images, first.images)
