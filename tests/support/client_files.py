"""Files of clients as PFLlib writes them."""

import numpy as np


def save_clients(root, sizes=((3, 2), (4, 1)), make=lambda x: x.astype(np.float32) / 127.5 - 1, seed=0):
    """What PFLlib's ``save_file`` writes: ``np.savez_compressed(f, data={'x': ..., 'y': ...})``."""
    rng, truth = np.random.default_rng(seed), []
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
    for client, both in enumerate(sizes):
        for split, n in zip(("train", "test"), both, strict=True):
            x = rng.integers(0, 256, (n, 3, 4, 4)).astype(np.uint8)
            y = (np.arange(n) + client) % 3
            np.savez_compressed(root / split / f"{client}.npz", data={"x": make(x), "y": y})
            truth.append((x, y))
    return truth
