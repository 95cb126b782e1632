import shutil

import pytest
import torch
from torch import nn

from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.model_parts import set_fused_attention
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout
from raysim.models.build import build_model
from raysim.training.engine import layout_of

from configs import tiny

K, B = 3, 5


def networks(**options):
    config = tiny()
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
    (plain, compiled), theta, batch = networks(compiled=True)
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
