"""Each method's local training against the same thing in plain torch modules and optimisers, written as its authors did."""

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

from raysim.algorithms import ALGORITHMS, algorithm_class
from raysim.errors import ConfigError
from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext, halves
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer
from raysim.plugins.registry import PLUGINS
from raysim.training.engine import layout_of

LR, B = 0.1, 4


def data(sizes=(4, 4, 3), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 3, 8, 8, generator=rng), torch.randint(5, (n,), generator=rng)) for n in sizes]


def vit():
    torch.manual_seed(0)
    kwargs = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **kwargs).train()


def client(name, batches, state=None, **keys):
    """The engine's calls for one client; returns uploads, state, the layout and the context."""
    algorithm = ALGORITHMS[name](name=name, **keys)
    model = vit()
    algorithm.add_plugin(model)
    layout = layout_of(model, algorithm)
    theta = layout.flatten(model.state_dict())
    ctx = ClientContext(
        FunctionalModel(model, layout), layout, {"shared": layout.split(theta)[0]}, Optimizer("sgd", LR), LR, B, 0
    )
    carry = algorithm.client_init(state or algorithm.client_state(theta, layout), ctx)
    for epoch, phase in enumerate(algorithm.epochs(len(batches))):
        now = ClientContext(
            FunctionalModel(model, layout), layout, ctx.broadcast, ctx.optimizer, LR, B, 0, epoch=epoch, phase=phase
        )
        for x, y in batches[epoch]:
            carry, metrics = algorithm.client_step(carry, Batch(x, y, torch.ones(len(y))), now)
    assert metrics["loss"].shape == ()
    uploads, after = algorithm.client_final(carry, ctx)
    return algorithm, uploads, after, layout, ctx


def flat(model, layout):
    return layout.flatten(model.state_dict())


def step(model, parameters, batch):
    x, y = batch
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    torch.optim.SGD(parameters, LR).step()


def is_head(name):
    return name.startswith("head")


@pytest.mark.parametrize("name", ["fedavg", "local", "fedbn", "fedper", "vanilla"])
def test_plain_sgd_divided_into_shared_and_personal(name):
    _, uploads, state, layout, _ = client(name, [data()])
    model = vit()
    for batch in data():
        step(model, model.parameters(), batch)
    expected = flat(model, layout)
    np.testing.assert_allclose(torch.cat([uploads["shared"], state["personal"]]), expected, atol=1e-6)


def personal(name, **keys):
    algorithm = ALGORITHMS[name](**keys)
    model = vit()
    algorithm.add_plugin(model)
    layout = layout_of(model, algorithm)
    return set(layout.names[layout.num_shared_tensors :]), set(layout.names)


def test_what_each_method_keeps_personal():
    for name in ("fedavg", "fedbabu", "perfedavg", "apfl", "centralized"):
        assert personal(name)[0] == set()
    kept, every = personal("local")
    assert kept == every
    for name in ("fedper", "fedrep"):
        assert personal(name)[0] == {"head.weight", "head.bias"}
    assert personal("fedbn")[0] == {n for n in every if "norm" in n}
    assert personal("vanilla")[0] == {n for n in every if ".attn." in n or is_head(n)}
    kept, with_plugin = personal("fedperfix", mid_dim=3)
    assert kept == {n for n in with_plugin if ".adapter." in n or is_head(n)}
    assert with_plugin - every == {f"blocks.{b}.attn.qkv.adapter.{n}" for b in (0, 1) for n in KINDS}


KINDS = ("down.weight", "down.bias", "up.weight", "up.bias")


def test_fedrep_trains_the_head_then_the_body():
    epochs = [data(seed=s) for s in range(3)]
    algorithm, uploads, state, layout, _ = client("fedrep", epochs)
    assert algorithm.epochs(3) == ["head", "head", "body"]
    assert algorithm.epochs(1) == ["head", "body"]
    assert ALGORITHMS["fedrep"](body_epochs=5).epochs(3) == ["head", "body", "body"]
    model = vit()
    for epoch, part in zip(epochs, ("head", "head", "body"), strict=True):
        for batch in epoch:
            step(model, [p for n, p in model.named_parameters() if is_head(n) == (part == "head")], batch)
    np.testing.assert_allclose(torch.cat([uploads["shared"], state["personal"]]), flat(model, layout), atol=1e-6)


def test_fedrep_has_an_optimiser_for_each_part():
    algorithm, model = ALGORITHMS["fedrep"](), vit()
    layout = layout_of(model, algorithm)
    theta = layout.flatten(model.state_dict())
    ctx = ClientContext(
        FunctionalModel(model, layout), layout, {"shared": layout.split(theta)[0]}, Optimizer("adamw", 0.01), 0.01, B, 0
    )
    carry = algorithm.client_init(algorithm.client_state(theta, layout), ctx)
    (batch,) = data((4,))
    plain, parts = vit(), {"head": [], "body": []}
    for name, parameter in plain.named_parameters():
        parts["head" if is_head(name) else "body"].append(parameter)
    for phase in ("head", "head", "body"):
        now = ClientContext(FunctionalModel(model, layout), layout, ctx.broadcast, ctx.optimizer, LR, B, 0, phase=phase)
        carry, _ = algorithm.client_step(carry, Batch(*batch, torch.ones(4)), now)
    for phase, steps in (("head", 2), ("body", 1)):
        optimizer = torch.optim.AdamW(parts[phase], 0.01, weight_decay=0.0)
        for _ in range(steps):
            plain.zero_grad()
            cross_entropy(plain(batch[0]), batch[1]).backward()
            optimizer.step()
    moved = ~layout.mask(["qkv.bias"])  # the keys' bias has no effect, its gradient is rounding
    np.testing.assert_allclose(carry["theta"][moved], flat(plain, layout)[moved], atol=1e-4)


def test_fedbabu_keeps_the_head_and_fine_tunes_everything_for_evaluation():
    algorithm, uploads, _, layout, ctx = client("fedbabu", [data()])
    model = vit()
    for batch in data():
        step(model, [p for n, p in model.named_parameters() if not is_head(n)], batch)
    np.testing.assert_allclose(uploads["shared"], flat(model, layout), atol=1e-6)
    (batch,) = data((4,), seed=9)
    adapted = algorithm.adapt(algorithm.adapt_init(uploads["shared"], {}, ctx), Batch(*batch, torch.ones(4)), ctx)[
        "theta"
    ]
    step(model, model.parameters(), batch)
    np.testing.assert_allclose(adapted, flat(model, layout), atol=1e-6)
    assert algorithm.adapt_steps() == 1


@pytest.mark.parametrize("name", ["fedbabu", "fedavg_ft"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adaptation_is_sgd_of_its_own_whose_momentum_lives_through_its_steps(momentum, name):
    """Training is AdamW in a late round of a decayed schedule: neither has a part in it."""
    algorithm = ALGORITHMS[name](fine_tuning_steps=3, adapt_lr=0.05, adapt_momentum=momentum)
    model = vit()
    layout = layout_of(model, algorithm)
    theta = layout.flatten(model.state_dict())
    late = Optimizer("adamw", 1e-6, weight_decay=0.1, clip_norm=1e-3)
    ctx = ClientContext(FunctionalModel(model, layout), layout, {"shared": theta}, late, 0.01, B, 30)
    carry, plain = algorithm.adapt_init(theta, {}, ctx), vit()
    sgd = torch.optim.SGD(plain.parameters(), 0.05, momentum=momentum)
    for batch in data((4, 4, 4), seed=3):
        carry = algorithm.adapt(carry, Batch(*batch, torch.ones(4)), ctx)
        plain.zero_grad()
        cross_entropy(plain(batch[0]), batch[1]).backward()
        sgd.step()
    np.testing.assert_allclose(carry["theta"], flat(plain, layout), atol=1e-6)
    assert ALGORITHMS[name]().adapt_optimizer(ctx) == Optimizer("sgd", 0.01)  # the undecayed rate, nothing else


def test_the_inner_step_of_per_fedavg_is_sgd_at_its_own_rate_under_adamw():
    algorithm = ALGORITHMS["perfedavg"](adapt_lr=0.05)
    model = vit()
    layout = layout_of(model, algorithm)
    theta = layout.flatten(model.state_dict())
    outer = Optimizer("adamw", 0.001)
    ctx = ClientContext(FunctionalModel(model, layout), layout, {"shared": theta}, outer, 0.01, B, 0)
    ((x, y),) = data((8,))
    carry, _ = algorithm.client_step(
        algorithm.client_init({"personal": theta[:0]}, ctx), Batch(x, y, torch.ones(8)), ctx
    )
    ahead = vit()
    loss = cross_entropy(ahead(x[:B]), y[:B])
    loss.backward()
    torch.optim.SGD(ahead.parameters(), 0.05).step()
    ahead.zero_grad()
    cross_entropy(ahead(x[B:]), y[B:]).backward()
    gradient = layout.flatten({name: p.grad for name, p in ahead.named_parameters()})
    expected, _ = outer.step(theta, gradient, outer.init(theta))
    moved = ~layout.mask(["qkv.bias"])  # the keys' bias has no effect, its gradient is rounding
    np.testing.assert_allclose(carry["theta"][moved], expected[moved], atol=1e-5)
    assert algorithm.adapt_optimizer(ctx) == Optimizer("sgd", 0.05)


def per_fedavg_pair(model, x, y):
    """The original's: a step on the first batch, the gradient on the second, a step with it from where the pair began."""
    cut = B if len(y) > B else (len(y) + 1) // 2
    before = copy.deepcopy(model.state_dict())
    step(model, model.parameters(), (x[:cut], y[:cut]))
    model.zero_grad()
    cross_entropy(model(x[cut:]), y[cut:]).backward()
    model.load_state_dict(before)
    torch.optim.SGD(model.parameters(), LR).step()


def test_per_fedavg_is_first_order_on_pairs_of_batches():
    pairs = data((8, 6, 3))  # a full pair, a short second batch, and a single batch that is divided
    _, uploads, _, layout, _ = client("perfedavg", [pairs])
    model = vit()
    for x, y in pairs:
        per_fedavg_pair(model, x, y)
    np.testing.assert_allclose(uploads["shared"], flat(model, layout), atol=1e-6)


def test_per_fedavg_hessian_free_approximates_the_second_derivative():
    (pair,) = data((8,))
    _, uploads, _, _, ctx = client("perfedavg", [[pair]], hessian_free=True)
    theta = ctx.broadcast["shared"]
    ctx = replace(ctx, model=FunctionalModel(ctx.model.model, ctx.layout, second_derivatives=True))
    first, second = halves(Batch(*pair, torch.ones(8)), B)

    def meta(theta):  # the exact derivative, through the inner step
        inner = torch.func.grad(ctx.loss)(theta, first)
        return ctx.loss(theta - LR * inner, second)

    for module in ctx.model.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # has no second derivative
    exact = torch.func.grad(meta)(theta)
    first_order = client("perfedavg", [[pair]])[1]["shared"]
    moved = (theta - uploads["shared"]) / LR
    error = (moved - exact).norm() / exact.norm()
    assert error < 0.02
    assert error < 0.2 * ((theta - first_order) / LR - exact).norm() / exact.norm()


def test_apfl_as_the_original_does_it():
    alpha, batches = 0.6, data()
    shared, own = vit(), vit()
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.01)
    algorithm = ALGORITHMS["apfl"](alpha=alpha)
    layout = layout_of(shared, algorithm)
    state = {"own": flat(own, layout), "alpha": torch.tensor([alpha])}
    _, uploads, after, _, ctx = client("apfl", [batches], state=state)
    for batch in batches:
        step(shared, shared.parameters(), batch)
        step(own, own.parameters(), batch)
        slope = 0.02 * alpha  # with parameters after the step and gradients before it, as there
        for p_shared, p_own in zip(shared.parameters(), own.parameters(), strict=True):
            mixed = alpha * p_own.grad + (1 - alpha) * p_shared.grad
            slope += ((p_own - p_shared).detach() * mixed).sum().item()
        alpha = float(np.clip(alpha - LR * slope, 0, 1))
    np.testing.assert_allclose(uploads["shared"], flat(shared, layout), atol=1e-6)
    np.testing.assert_allclose(after["alpha"], [alpha], atol=1e-5)
    mixture = alpha * flat(own, layout) + (1 - alpha) * flat(shared, layout)
    np.testing.assert_allclose(after["own"], mixture, atol=1e-6)
    assert alpha != pytest.approx(0.6, abs=1e-4)
    assert torch.equal(algorithm.personalize(uploads["shared"], after, ctx), after["own"])


def test_apfl_with_the_mixture_in_every_step():
    own = vit()
    with torch.no_grad():
        for p in own.parameters():
            p.add_(0.01)
    (batch,) = data((4,))
    layout = layout_of(own, ALGORITHMS["apfl"]())
    v, alpha = flat(own, layout), torch.tensor([0.6])
    algorithm, _, after, _, ctx = client("apfl", [[batch]], state={"own": v, "alpha": alpha}, mixture="step")
    w, full = ctx.broadcast["shared"], Batch(*batch, torch.ones(4))
    gradient, _ = ctx.gradient(0.6 * v + 0.4 * w, full)
    np.testing.assert_allclose(after["own"], v - LR * 0.6 * gradient, atol=1e-6)
    np.testing.assert_allclose(after["alpha"], [0.6 - LR * ((v - w) * gradient).sum()], atol=1e-5)
    np.testing.assert_allclose(algorithm.personalize(w, {"own": v, "alpha": alpha}, ctx), 0.6 * v + 0.4 * w, atol=1e-6)


def test_freezing_trains_and_sends_plugin_and_head_only():
    keys = {"plugin": "lora", "personal": ["head"], "freeze_backbone": True}
    _, uploads, state, layout, _ = client("fedperfix", [data()], **keys)
    assert all(".lora." in name for name in layout.names[: layout.num_shared_tensors])
    assert layout.names[layout.num_shared_tensors :] == ("head.weight", "head.bias")
    assert len(uploads["shared"]) == 2 * (8 * 16 + 8 * 48)
    model = vit()
    PLUGINS["lora"].add(model, 8, 1.0, None)
    for batch in data():
        step(model, [p for n, p in model.named_parameters() if ".lora." in n or is_head(n)], batch)
    np.testing.assert_allclose(torch.cat([uploads["shared"], state["personal"]]), flat(model, layout), atol=1e-6)


def test_plugin_keys_have_the_plugins_defaults_and_are_refused_where_it_has_none():
    FedPerfix = ALGORITHMS["fedperfix"]
    assert FedPerfix().model_dump() == {
        "name": "",
        "plugin": "prefix",
        "mid_dim": 256,
        "scale": 1.5,
        "plugin_depth": None,
        "personal": ["adapter", "head"],
        "freeze_backbone": False,
    }
    lora = FedPerfix(plugin="lora")
    assert (lora.mid_dim, lora.scale, lora.personal) == (8, 1.0, ["lora", "head"])
    assert FedPerfix(plugin="prompt", personal=[]).personal == []
    with pytest.raises(ValueError, match="Input should be 'prefix'"):
        FedPerfix(plugin=["lora"])
    for plugin, key in (("prompt", "scale"), ("prefix_zero", "mid_dim")):
        with pytest.raises(ValueError, match=f"'{key}' is not used by the plugin '{plugin}'"):
            FedPerfix(plugin=plugin, **{key: 1})
    assert FedPerfix.model_validate(lora.model_dump()) == lora


def test_every_method_says_what_it_is():
    for name, cls in ALGORITHMS.items():
        assert cls.__doc__
        assert "\n" not in cls.__doc__
        assert cls.paper.startswith("https://") or name in ("local", "centralized")
        module = sys.modules[cls.__module__].__doc__
        assert ("Down" in module and cls.paper in module) or name == "centralized"
        assert algorithm_class({"name": name}) is cls


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'fedbabu'"):
        algorithm_class({"name": "FedBaBu"})
