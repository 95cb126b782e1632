"""Sub-models of a ViT's width against ViTs that are built as small as that."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from parity import PLAIN, SHAPES, ParityTask

from raysim.algorithms import width
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare

from configs import tiny
from simulation import Simulation

DIM, HEADS = 32, 2


def indices(share, offset):
    """Which dimensions of the residual stream, of q, k and v, and of a hidden layer a client has."""

    def window(n):
        return (torch.arange(round(n * share)) + offset) % n

    per_head = window(DIM // HEADS)
    inner = torch.cat([head * DIM // HEADS + per_head for head in range(HEADS)])
    return window(DIM), inner, window(4 * DIM)


def cut(tensors, share, offset):
    """The tensors of a whole ViT, by name, as those of the smaller one; indexed by hand."""
    d, inner, hidden = indices(share, offset)
    three = torch.cat([part * DIM + inner for part in range(3)])
    small = {}
    for name, value in tensors.items():
        if name in ("cls_token", "pos_embed"):
            value = value[..., d]
        elif "qkv" in name:
            value = value[three][:, d] if value.dim() == 2 else value[three]
        elif "attn.proj.weight" in name:
            value = value[d][:, inner]
        elif "fc1" in name:
            value = value[hidden][:, d] if value.dim() == 2 else value[hidden]
        elif "fc2.weight" in name:
            value = value[d][:, hidden]
        elif name == "head.weight":
            value = value[:, d]
        elif name != "head.bias":
            value = value[d]
        small[name] = value
    return small


def small_vit(tensors, share, offset):
    kwargs = {"patch_size": 4, "embed_dim": round(DIM * share), "depth": 2, "num_heads": HEADS}
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=5, **kwargs)
    model.load_state_dict(cut(tensors, share, offset))
    return model


def named(task, theta):
    return {name: piece.clone() for name, piece in task.engine.layout.unflatten(theta).items()}


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_part_computes_what_a_small_vit_does(share, offset):
    task = ParityTask("all", {"name": "fedrolex", "scaler": False})
    algorithm, engine = task.algorithm, task.engine
    context = engine._context(offset, task.broadcast)
    state = {"personal": torch.empty(0), "width": torch.tensor([share])}
    with torch.no_grad(), engine._model.mode(training=False, vectorised=False):
        carry = algorithm.client_init(state, context)
        theta = algorithm._scaled(carry["theta"], state["width"], context, scaler=False)
        images = engine.samples.model_input(engine.samples.held_out(np.array([0])).images)[0]
        ours, theirs = context.logits(theta, images), small_vit(named(task, task.initial), share, offset)(images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert carry["own"].sum() == sum(
        p.numel() for p in small_vit(named(task, task.initial), share, offset).parameters()
    )


@pytest.mark.parametrize("schedule", ["all", "part"])
@pytest.mark.parametrize(("name", "scaler"), [("heterofl", False), ("fedrolex", False), ("heterofl", True)])
def test_rounds_are_those_of_small_vits(name, scaler, schedule):
    """Modules as small as the client's part, trained by torch.optim, whose entries are averaged one by one."""
    task = ParityTask(schedule, {"name": name, "widths": [1.0, 0.5, 0.25], "scaler": scaler})
    whole = named(task, task.initial)
    index = {n: torch.arange(v.numel()).view(v.shape) for n, v in whole.items()}
    for round_, cohort in enumerate(task.cohorts):
        offset = round_ if name == "fedrolex" else 0
        sums, counts = ({n: torch.zeros(v.numel()) for n, v in whole.items()} for _ in range(2))
        for client in cohort:
            share = [1.0, 0.5, 0.25][client % 3]
            model, places = small_vit(whole, share, offset), cut(index, share, offset)
            hooks = scale_outputs(model, share) if scaler else []
            pool = task.engine.samples.training(np.array([client]))
            images, labels = task.engine.samples.model_input(pool.images)[0], pool.labels[0]
            optimizer = torch.optim.SGD(model.parameters(), 0.05)
            for _ in range(2):
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            for hook in hooks:
                hook.remove()
            for n, value in model.state_dict().items():
                sums[n][places[n].flatten()] += value.detach().flatten()
                counts[n][places[n].flatten()] += 1
        mean = {n: sums[n] / counts[n].clamp(min=1) for n in whole}
        whole = {n: torch.where(counts[n] > 0, mean[n], v.flatten()).view_as(v) for n, v in whole.items()}
        task.round(round_, [cohort])
        np.testing.assert_allclose(task.shared, task.engine.layout.flatten(whole), atol=1e-5)


def scale_outputs(model, share):
    """HeteroFL's scaler after embeddings and linear layers but the head, in a model in training mode."""
    layers = [
        model.patch_embed.proj,
        *(layer for b in model.blocks for layer in (b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)),
    ]
    hooks = [layer.register_forward_hook(lambda _, __, output: output / share) for layer in layers]
    before = model._pos_embed

    def scaled(x):
        # Both embeddings are divided as well: they are added to what the patches give, which already is.
        tokens = before(x)
        count = model.num_prefix_tokens
        own = torch.cat([model.cls_token + model.pos_embed[:, :count], model.pos_embed[:, count:]], dim=1)
        return tokens + own * (1 / share - 1)

    model._pos_embed = scaled
    return hooks


def test_widths_bytes_and_classes():
    s = Simulation(algorithm={"name": "heterofl", "widths": [1.0, 0.5], "mask_classes": True})
    (trained,) = s.round(0, [[0, 1]])
    size = s.engine.layout.num_shared
    labels = s.engine.samples._labels
    absent = [10 - len(set(labels[s.engine.partition.train(c)])) for c in (0, 1)]
    assert trained.traffic[0, 0] == size - absent[0] * (s.engine.layout.shapes[-2][1] + 1)
    assert trained.traffic[1, 0] < 0.4 * size
    draws = Simulation(algorithm={"name": "heterofl", "assignment": "dynamic"})
    everyone = np.arange(8)
    rounds = [draws.server.messages(r, everyone)["width"] for r in range(4)]
    assert len({tuple(w.flatten().tolist()) for w in rounds}) > 1
    assert torch.equal(draws.server.messages(0, everyone[3:5])["width"], rounds[0][3:5])  # in whatever batch


def test_evaluated_with_its_own_part():
    for evaluated in ("full", "width"):
        s = Simulation(algorithm={"name": "heterofl", "widths": [0.5], "evaluated": evaluated})
        s.round(0, [[0, 1]])
        theta = s.engine.predictor(1, 0, s.broadcast, s.state(0)).theta[0]
        assert torch.equal(theta, s.shared) == (evaluated == "full")


def test_what_is_no_plain_vit_is_refused():
    model = {"name": "resnet10t", "image_size": 32, "kwargs": {}}
    with pytest.raises(ConfigError, match="sub-models of a width need a plain ViT of timm"):
        prepare(tiny(algorithm={"name": "heterofl"}, model=model, resources={"clients_per_batch": 1}))
    with pytest.raises(ConfigError, match=r"need a plain ViT of timm, not one with blocks.0.attn.q_norm.weight"):
        Simulation(algorithm={"name": "heterofl"}, model={"kwargs": {"qk_norm": True}}).round(0, [[0]])
    with pytest.raises(ConfigError, match=r"need a plain ViT of timm, not one with blocks.0.attn.qkv.lora.down.weight"):
        prepare(tiny(algorithm={"name": "fedrolex", "plugin": "lora", "freeze_backbone": True}))
    with pytest.raises(ValueError, match="must be shares of the width, above 0 and at most 1"):
        tiny(algorithm={"name": "heterofl", "widths": [0.0]})


def test_every_parameter_of_a_plain_vit_has_its_axes():
    assert {width._axes_of(name) for name in SHAPES} <= set(width.AXES.values())
    assert isinstance(PLAIN.norm, torch.nn.LayerNorm)
