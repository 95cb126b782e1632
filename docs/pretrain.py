"""A stand-in for pretraining, where no pretrained weights can be had: a small ViT on half of the classes of a data set.

    python docs/pretrain.py IMAGES.npz FOLDER          IMAGES.npz has images (n, H, W, 3) uint8 and labels (n,)

Trains centrally on the classes with even numbers, and writes to FOLDER

    pretrained.safetensors     the ViT, for model.weights; its head is left out
    other_half.npz             the images of the other classes, labelled 0, 1, ..., for data.root

One thread, seeded: the same file again on the same machine. A tenth of the images is held out and the accuracy on it printed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

MODEL = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
EPOCHS, BATCH, LR, DECAY = 30, 128, 1e-3, 0.05


def normalised(images: torch.Tensor) -> torch.Tensor:
    """(n, H, W, 3) uint8 to what raysim gives a ViT of timm: (n, 3, H, W) in [-1, 1]."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random crops after padding by 4 pixels, and flips."""
    padded, side = F.pad(images, (4, 4, 4, 4)), images.shape[-1]
    rows, columns = torch.randint(0, 9, (2, len(images)), generator=generator)
    cut = torch.stack([p[:, r : r + side, c : c + side] for p, r, c in zip(padded, rows, columns, strict=True)])
    flips = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flips[:, None, None, None], cut.flip(-1), cut)


def main(source: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    with np.load(source) as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    even, out = labels % 2 == 0, Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "other_half.npz", images=images[~even], labels=labels[~even] // 2)
    x, y = torch.from_numpy(images[even]), torch.from_numpy(labels[even] // 2)
    order = torch.randperm(len(x), generator=generator)
    held_out, train = order[: len(x) // 10], order[len(x) // 10 :]
    model = timm.create_model("vit_tiny_patch16_224", num_classes=int(y.max()) + 1, **MODEL)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=DECAY)
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    start = time.time()
    for epoch in range(EPOCHS):
        model.train()
        for batch in train[torch.randperm(len(train), generator=generator)].split(BATCH):
            loss = F.cross_entropy(model(augmented(normalised(x[batch]), generator)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            hits = torch.cat([model(normalised(x[b])).argmax(1) == y[b] for b in held_out.split(500)])
        print(
            f"epoch {epoch + 1}: loss {loss.item():.3f}, held out {hits.float().mean():.3f}, {time.time() - start:.0f} s"
        )
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("head.")}
    save_file(tensors, out / "pretrained.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
