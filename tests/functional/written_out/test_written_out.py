"""Against autograd through timm's own modules, client by client."""

import logging

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raysim.functional.batch import Batch
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.model_parts import set_fused_attention
from raysim.functional.parameters import ParameterLayout
from raysim.functional.written_out.layers import Gelu
from raysim.functional.written_out.recognised import written_out
from raysim.functional.written_out.through_autograd import ThroughAutograd
from raysim.plugins.adapter import add_adapter
from raysim.plugins.lora import add_lora
from raysim.plugins.prefix import add_plain_prefix, add_prefix
from raysim.plugins.prompt import add_prompt

K, B, CLASSES, SIDE = 3, 4, 5, 8
SMALL = {
    "img_size": SIDE,
    "in_chans": 2,
    "num_classes": CLASSES,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
}
# What timm's arguments make of a ViT, and how many parts of it go through autograd.
MODELS = {
    "plain": ({}, 0),
    "one block": ({"depth": 1}, 0),
    "average": ({"global_pool": "avg"}, 0),
    "average without a class token": ({"global_pool": "avg", "class_token": False}, 0),
    "average with a norm before": ({"global_pool": "avg", "fc_norm": False}, 0),
    "no biases": ({"qkv_bias": False, "proj_bias": False}, 0),
    "layer scale": ({"init_values": 0.3}, 0),
    "no positions": ({"pos_embed": "none"}, 0),
    "no norm at the end": ({"final_norm": False}, 0),
    "tanh-gelu": ({"act_layer": "gelu_tanh"}, 2),
    "registers": ({"reg_tokens": 2}, 1),
    "norm at the start": ({"pre_norm": True}, 1),
    "norms of queries and keys": ({"qk_norm": True}, 2),
    "attention pooling": ({"global_pool": "map"}, 1),
    "largest token": ({"global_pool": "max"}, 1),
    "uneven patches": ({"patch_size": (2, 4)}, 0),
    "norm in the mlp": ({"scale_mlp_norm": True}, 0),
    "dropout": ({"proj_drop_rate": 0.5, "drop_path_rate": 0.5}, None),
}
PLUGINS = {
    "prefix": lambda model: add_prefix(model, 3, 0.8),
    "prefix on the last": lambda model: add_prefix(model, 3, 0.8, depth=1),
    "plain prefix": lambda model: add_plain_prefix(model, 0.8, None, zero=False),
    "adapter": lambda model: add_adapter(model, 3, 0.8),
    "lora": lambda model: add_lora(model, 2, 0.8),
    "prompt": lambda model: add_prompt(model, 2),
}


def vit(**arguments):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**SMALL, **arguments}).eval().requires_grad_(False)


def clients(layout, model):
    """Parameters far from their initial values, of which some are 0, and batches with padding."""
    generator = torch.Generator().manual_seed(1)
    theta = layout.flatten(model.state_dict())
    theta = theta + 0.2 * torch.randn(K, len(theta), generator=generator)
    images = torch.randn(K, B, 2, SIDE, SIDE, generator=generator)
    mask = torch.ones(K, B)
    mask[1, 2:] = mask[2] = 0
    return theta, images, torch.randint(CLASSES, (K, B), generator=generator), mask


def reference(model, layout, theta, images, labels, mask):
    """Logits, representation, gradient and loss of one client."""
    theta = theta.clone().requires_grad_()
    tensors = layout.unflatten(theta)
    logits = torch.func.functional_call(model, tensors, (images,))
    features = torch.func.functional_call(Features(model), {f"model.{n}": t for n, t in tensors.items()}, (images,))
    losses = F.cross_entropy(logits, labels, reduction="none")
    loss = (losses * mask).sum() / mask.sum().clamp(min=1)
    (gradient,) = torch.autograd.grad(loss, theta, materialize_grads=True)
    return logits.detach(), features.detach(), gradient, loss.detach()


class Features(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.forward_head(self.model.forward_features(images), pre_logits=True)


def check(model, layout):
    written = written_out(model, layout)
    assert written is not None
    theta, images, labels, mask = clients(layout, model)
    expected = [reference(model, layout, *client) for client in zip(theta, images, labels, mask, strict=True)]
    logits, features, gradient, loss = (torch.stack(column) for column in zip(*expected, strict=True))
    close = {"rtol": 1e-4, "atol": 2e-6}
    for of in (slice(None), slice(0, 1)):  # together and alone
        batch = theta[of], images[of], labels[of], mask[of]
        set_fused_attention(model, len(batch[0]) == 1)
        torch.testing.assert_close(written(*batch[:2], "logits"), logits[of], **close)
        torch.testing.assert_close(written(*batch[:2], "features"), features[of], **close)
        got, mean = written.gradient(*batch)
        torch.testing.assert_close(got, gradient[of], **close)
        torch.testing.assert_close(mean, loss[of], **close)
    return written


def through_autograd(written):
    """How many of a model's parts are not written out."""
    seen, todo = 0, [stage.layer for stage in written._stages["logits"]]
    while todo:
        part = todo.pop()
        seen += isinstance(part, ThroughAutograd)
        values = vars(part).values() if hasattr(part, "__dict__") and not isinstance(part, ThroughAutograd) else ()
        for value in values:
            todo += [v for v in (value if isinstance(value, tuple) else (value,)) if callable(v)]
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_models_are_those_of_timm(name):
    arguments, apart = MODELS[name]
    model = vit(**arguments)
    written = check(model, ParameterLayout.of(model))
    assert apart is None or through_autograd(written) == apart


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_plugins_are_those_of_vmap(name, pool):
    model = vit(global_pool=pool)
    PLUGINS[name](model)
    model.requires_grad_(False)
    plugin = "prompt" if name == "prompt" else "lora" if name == "lora" else "adapter"
    written = check(model, ParameterLayout.of(model, (plugin, "head")))
    assert through_autograd(written) == (2 if name == "prompt" else 0)


@pytest.mark.parametrize(
    "trained", [["head"], ["bias"], ["blocks.1"], ["weight"], ["norm1", "head"], ["pos_embed"], ["qkv"]]
)
@pytest.mark.parametrize("arguments", [{}, {"qk_norm": True}])
def test_frozen_parameters(trained, arguments):
    model = vit(**arguments)
    check(model, ParameterLayout.of(model, trainable=trained))


def test_only_the_class_token_leaves_the_last_block():
    flops = {}
    for pool in ("token", "avg"):
        model = vit(global_pool=pool, fc_norm=False)
        layout = ParameterLayout.of(model)
        theta, images, *_ = clients(layout, model)
        written = written_out(model, layout)
        with FlopCounterMode(display=False) as counter:
            written(theta, images, "logits")
        flops[pool] = counter.get_total_flops()
    # qkv, projection and MLP of 5 tokens in two blocks, or for 4 of 5 tokens of the last without queries, projection, MLP
    per_token = 2 * 16 * 16 * (1 + 1 + 8)
    assert flops["avg"] - flops["token"] > 0.95 * K * B * 4 * per_token


def test_a_model_of_another_kind_is_not_written_out():
    for name in ("swin_tiny_patch4_window7_224", "cait_xxs24_224", "deit_tiny_distilled_patch16_224"):
        model = timm.create_model(name, num_classes=5)
        assert written_out(model, ParameterLayout.of(model)) is None
    model = vit()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    assert written_out(model, ParameterLayout.of(model)) is None
    hooked = vit()
    hooked.register_forward_hook(lambda *_: None)
    assert written_out(hooked, ParameterLayout.of(hooked)) is None


def test_what_is_not_known_goes_through_autograd_alone():
    model = vit()
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: output * 2)
    model.blocks[1].attn.proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model.norm.forward = lambda x: 3 * nn.LayerNorm.forward(model.norm, x)
    assert through_autograd(check(model, ParameterLayout.of(model))) == 3


def test_a_gradient_that_is_another_one_is_not_used_and_said(monkeypatch, caplog):
    model = vit()
    assert FunctionalModel(model, ParameterLayout.of(model))._written is not None
    monkeypatch.setattr(Gelu, "__call__", lambda self, w, x: (x.relu(), lambda gradient: gradient * (x > 0)))
    model = vit()
    with caplog.at_level(logging.WARNING):
        functional = FunctionalModel(model, ParameterLayout.of(model))
    assert functional._written is None
    (line,) = caplog.messages
    assert "The written-out gradient of VisionTransformer is " in line
    theta, images, labels, mask = clients(functional.layout, model)
    gradient, _ = torch.func.vmap(lambda t, *b: functional.gradient(t, Batch(*b)))(theta, images, labels, mask)
    expected = reference(vit(), functional.layout, theta[1], images[1], labels[1], mask[1])[2]
    torch.testing.assert_close(gradient[1], expected, rtol=1e-4, atol=2e-6)


def test_a_second_derivative_is_refused_or_taken_by_autograd():
    model = vit()
    set_fused_attention(model, False)
    layout = ParameterLayout.of(model)
    theta, images, labels, mask = clients(layout, model)
    batch = Batch(images[0], labels[0], mask[0])

    def of_the_gradient(functional):
        inner = torch.func.grad(functional.loss)
        return torch.func.grad(lambda theta: inner(theta, batch).square().sum())(theta[0])

    with pytest.raises(RuntimeError, match="second_derivatives = True"):
        of_the_gradient(FunctionalModel(model, layout))
    assert of_the_gradient(FunctionalModel(model, layout, second_derivatives=True)).norm() > 0
    once = torch.func.grad(FunctionalModel(model, layout).loss)(theta[0], batch)
    torch.testing.assert_close(once, reference(model, layout, theta[0], *batch)[2], rtol=1e-4, atol=2e-6)


def functionals(model):
    """The model, written out and not."""
    layout = ParameterLayout.of(model)
    set_fused_attention(model, False)
    both = [FunctionalModel(model, layout, second_derivatives=general) for general in (False, True)]
    assert [f._written is None for f in both] == [False, True]
    return *both, clients(layout, model)


def test_a_gradient_of_images_is_refused_and_not_taken_for_0():
    written, general, (theta, images, *_) = functionals(vit())

    def of_images(functional):
        return torch.func.grad(lambda x: functional.logits(theta[0], x).square().sum())(images[0])

    assert of_images(general).norm() > 0
    with pytest.raises(RuntimeError, match=r"respect to images is taken.*second_derivatives = True"):
        of_images(written)


@pytest.mark.parametrize("what", ["features", "logits"])
def test_clients_that_differ_in_images_only_do_not_mix(what):
    written, general, (theta, images, *_) = functionals(vit())

    def gradient(functional, images):
        call = getattr(functional, what)
        result, back = torch.func.vjp(lambda t: call(t, images), theta[0])
        return back(torch.ones_like(result))[0]

    got, expected = (torch.func.vmap(lambda x, f=f: gradient(f, x))(images) for f in (written, general))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_transforms_inside_transforms():
    """A gradient for each sample of each client, and a Jacobian."""
    written, general, (theta, images, labels, _) = functionals(vit())

    def each_sample(functional, theta, images, labels):
        def of_one(image, label):
            batch = Batch(image[None], label[None], torch.ones(1))
            return torch.func.grad(functional.loss)(theta, batch)

        return torch.func.vmap(of_one)(images, labels)

    for wrap in (lambda f: torch.func.vmap(f), lambda f: lambda *a: f(*(t[0] for t in a))):
        got, expected = (wrap(lambda *a, f=f: each_sample(f, *a))(theta, images, labels) for f in (written, general))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got, expected = (torch.func.jacrev(lambda t, f=f: f.logits(t, images[0, :2]))(theta[0]) for f in (written, general))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_way_back_can_be_gone_twice():
    written, general, (theta, images, *_) = functionals(vit(qk_norm=True))
    found = []
    for functional in (written, general):
        leaf = theta[0].clone().requires_grad_()
        loss = functional.logits(leaf, images[0]).square().sum()
        found.append([torch.autograd.grad(loss, leaf, retain_graph=True)[0] for _ in range(2)])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["blocks.0", "patch_embed", "patch_embed.proj", "blocks.1.mlp"])
def test_parameters_that_no_output_depends_on_have_gradient_0(where):
    model = vit()
    model.get_submodule(where).extra = nn.Linear(40, 40)
    layout = ParameterLayout.of(model.requires_grad_(False))
    garbage = [torch.full((K, layout.num_parameters), 1e9) for _ in range(3)]
    del garbage
    check(model, layout)


def test_modules_that_work_in_place_or_fail_are_no_reason_to_stop(caplog):
    model = vit()
    model.blocks[0].mlp.act = nn.ReLU(inplace=True)
    assert through_autograd(check(model, ParameterLayout.of(model))) == 1
    model = vit()
    add_adapter(model.requires_grad_(False), 3, 0.8)
    model.blocks[1].mlp.drop2 = nn.Sigmoid()
    check(model.requires_grad_(False), ParameterLayout.of(model))
    model = vit()
    model.blocks[0].attn.num_heads = 3  # does not divide 16
    with caplog.at_level(logging.WARNING):
        assert FunctionalModel(model, ParameterLayout.of(model))._written is None
    assert "The written-out gradient of VisionTransformer fails (RuntimeError" in caplog.messages[0]


def test_empty_batches_and_wrong_sizes():
    model = vit()
    layout = ParameterLayout.of(model)
    written = written_out(model, layout)
    theta, images, labels, mask = clients(layout, model)
    gradient, loss = written.gradient(theta, images[:, :0], labels[:, :0], mask[:, :0])
    assert gradient.abs().max() == loss.abs().max() == 0
    with pytest.raises(AssertionError, match=r"images of \(8, 9\) pixels, the model takes \(8, 8\)"):
        written(theta, torch.zeros(K, 1, 2, 8, 9), "logits")
    with pytest.raises(AssertionError):
        written.gradient(torch.cat([theta, theta], dim=1), images, labels, mask)
