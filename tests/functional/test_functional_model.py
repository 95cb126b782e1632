import shutil

import pytest
import timm
import torch
from torch import nn

from raysim.errors import ConfigError
from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext, ClientData
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.model_parts import set_fused_attention
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout
from raysim.models.build import build_model
from raysim.training.engine import layout_of

from configs import tiny

K, B = 3, 5


def networks(depth=2, **options):
    config = tiny(model={"kwargs": {"depth": depth}})
    model = build_model(config.model, config.algorithm, 10, 1, 0).requires_grad_(False)
    set_fused_attention(model, False)
    layout = layout_of(model, config.algorithm)
    theta = layout.flatten(model.state_dict()) * torch.linspace(1, 1.1, K)[:, None]
    contexts = [
        ClientContext(FunctionalModel(model, layout, **o), layout, {}, Optimizer("sgd", 0.1), 0.1, B, 0)
        for o in ({}, options)
    ]
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(K, B, 1, 8, 8, generator=generator), torch.randint(10, (K, B), generator=generator)
    return contexts, theta, Batch(images, labels, torch.ones(K, B))


def test_bfloat16_is_near_float32_and_parameters_stay_float32():
    (exact, rounded), theta, batch = networks(precision="bfloat16")
    expected, expected_loss = torch.func.vmap(exact.gradient)(theta, batch)
    gradient, loss = torch.func.vmap(rounded.gradient)(theta, batch)
    assert gradient.dtype == loss.dtype == torch.float32
    assert not torch.equal(gradient, expected)
    torch.testing.assert_close(loss, expected_loss, rtol=0.02, atol=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, expected, dim=1).min() > 0.999
    assert rounded.logits(theta[0], batch.images[0]).dtype == torch.float32
    alone, _ = rounded.gradient(theta[1], Batch(*(part[1] for part in batch)))
    assert torch.nn.functional.cosine_similarity(gradient[1], alone, dim=0) > 0.999


@pytest.mark.slow  # half a minute in a C++ compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gradients_are_the_same_for_many_and_for_one():
    (plain, compiled), theta, batch = networks(depth=1, compiled=True)
    expected, losses = torch.func.vmap(plain.gradient)(theta, batch)
    got = torch.func.vmap(compiled.gradient)(theta, batch)
    torch.testing.assert_close(got, (expected, losses), rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the whole loss, in one piece
    one = compiled.gradient(theta[0], Batch(*(part[0] for part in batch)))
    torch.testing.assert_close(one, (expected[0], losses[0]), rtol=1e-4, atol=1e-6)


def test_the_mode_is_that_of_the_block_and_then_what_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].fused_attn = True
    functional = FunctionalModel(model.eval(), ParameterLayout.of(model))
    with functional.mode(training=True, vectorised=True):
        assert (model[1].training, model[0].fused_attn) == (True, False)
        with functional.mode(training=False, vectorised=False):
            assert (model[1].training, model[0].fused_attn) == (False, True)
        assert (model[1].training, model[0].fused_attn) == (True, False)
    assert not model.training
    with pytest.raises(ValueError, match="inside"), functional.mode(training=True, vectorised=False):
        raise ValueError("inside")
    assert not model[1].training


def own_losses(theta, batch, carry, ctx):
    """Cross entropy under a scale of the client's own, and a pull of the mean representation; tells the representation."""
    z = ctx.features(theta, batch.images)
    losses = nn.functional.cross_entropy(carry["scale"] * ctx.head(theta, z), batch.labels, reduction="none")
    return losses + ctx.client.num_samples * (batch.mean(z) ** 2).sum(), {"z": z}


def test_a_loss_of_its_own_for_one_client_and_for_many():
    """Against torch.func.grad of the same written out; padded samples have no part in it, whatever they hold."""
    (ctx, _), theta, batch = networks()
    batch = batch._replace(mask=torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2, [1.0] * 4 + [0.0]]))
    batch.images[1, 3:] = 1e3
    scale, counts = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])
    data = ClientData(counts, torch.zeros(K, 10), torch.zeros(K))

    def one(theta, batch, scale, data):
        return ctx.of(data).gradient_of(own_losses, theta, batch, {"scale": scale})

    gradients, losses, more = torch.func.vmap(one)(theta, batch, scale, data)
    for k in range(K):
        n = int(batch.mask[k].sum())
        images, labels = batch.images[k, :n], batch.labels[k, :n]

        def plain(theta, images=images, labels=labels, k=k):
            z = ctx.features(theta, images)
            logits = ctx.logits(theta, images)
            loss = nn.functional.cross_entropy(scale[k] * logits, labels)
            return loss + counts[k] * (z.mean(dim=0) ** 2).sum()

        expected, loss = torch.func.grad_and_value(plain)(theta[k])
        torch.testing.assert_close(gradients[k], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses[k], loss)
        torch.testing.assert_close(more["z"][k, :n], ctx.features(theta[k], images), rtol=1e-4, atol=1e-5)
        alone = one(theta[k], Batch(*(part[k, :n] for part in batch)), scale[k], ClientData(*(d[k] for d in data)))
        torch.testing.assert_close(alone[0], gradients[k], rtol=1e-4, atol=1e-5)


def test_losses_that_are_not_one_per_sample_are_told():
    (ctx, _), theta, batch = networks()
    one = Batch(*(part[0] for part in batch))
    with pytest.raises(AssertionError, match=r"losses of 5 samples have shape \(\)"):
        ctx.gradient_of(lambda theta, *_: (theta.sum(), ()), theta[0], one, ())


def test_a_compiled_model_refuses_a_loss_of_its_own():
    (_, compiled), theta, batch = networks(depth=1, compiled=True)
    with pytest.raises(ConfigError, match="only cross entropy is compiled"):
        compiled.gradient_of(own_losses, theta[0], Batch(*(part[0] for part in batch)), ())


MODELS = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
    },
    "cait_xxs24_224": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "resnet10t": {},
    "convnext_atto": {},
    "mobilenetv3_small_050": {},
    "beit_base_patch16_224": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_on_the_representation_gives_the_logits(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **MODELS[name]).eval()
    layout = ParameterLayout.of(model)
    theta = layout.flatten(model.state_dict()) * 1.01
    side = MODELS[name].get("img_size", 32)
    functional, images = FunctionalModel(model, layout), torch.randn(2, 3, side, side)
    with torch.no_grad(), functional.mode(training=False, vectorised=False):
        z = functional.features(theta, images)
        torch.testing.assert_close(functional.head(theta, z), functional.logits(theta, images), rtol=1e-4, atol=1e-5)
    assert layout.head_shape == (5, z.shape[1])
    assert z.dim() == 2


def test_a_model_without_one_classifier_is_told():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=16, embed_dim=18, depth=1)
    layout = ParameterLayout.of(model)
    theta = layout.flatten(model.state_dict())
    with pytest.raises(ConfigError, match=r"no single linear classifier .* \(it has head, head_dist\)"):
        FunctionalModel(model, layout).head(theta, torch.zeros(1, 16))
    net = nn.Sequential(nn.Linear(2, 2))
    layout = ParameterLayout.of(net)
    with pytest.raises(ConfigError, match="Sequential gives no representation"):
        FunctionalModel(net, layout).features(layout.flatten(net.state_dict()), torch.zeros(1, 2))


def test_running_statistics_follow_the_model_that_trains_whatever_else_is_computed():
    """Of a ResNet, in a loss that also needs the representation of other parameters."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    layout = ParameterLayout.of(model)
    theta, batch = (
        layout.flatten(model.state_dict()),
        Batch(torch.randn(4, 3, 32, 32), torch.arange(4) % 3, torch.ones(4)),
    )
    functional = FunctionalModel(model, layout)

    def losses(t, batch, _):
        other = functional.features(theta * 2, batch.images)
        z = functional.features(t, batch.images)
        pull = (z - other).square().mean(dim=1)
        return nn.functional.cross_entropy(functional.head(t, z), batch.labels, reduction="none") + 0 * pull, ()

    with functional.mode(training=True, vectorised=False):
        gradient, _, _ = functional.gradient_of(losses, theta, batch, ())
        expected, _ = functional.gradient(theta, batch)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    moved = layout.mask(layout.statistics)
    assert (expected[moved] != 0).all()
