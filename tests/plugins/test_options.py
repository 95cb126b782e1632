"""Plugin, personal parameters and frozen ones: options of every method."""

import numpy as np
import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.models.build import build_model
from raysim.training.engine import layout_of

from configs import tiny
from simulation import Simulation

LORA = {"plugin": "lora", "mid_dim": 2, "freeze_backbone": True}
KEEP_A_MODEL = {name for name, cls in ALGORITHMS.items() if cls.whole_model_kept}


def test_which_methods_take_personal_patterns():
    of_their_own = {"apfl", "centralized", "ditto", "fedala", "fedkd", "fedphp", "fedproto", "fml", "local", "pfedme"}
    by_the_server = {"apple", "fedamp", "fedfomo", "pfedhn", "pfedla"}
    assert of_their_own | by_the_server | {"fedrolex", "heterofl"} == KEEP_A_MODEL
    for name in KEEP_A_MODEL:
        with pytest.raises(ValueError, match="'personal' is not used by this method: "):
            ALGORITHMS[name](personal=["head"])


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"centralized", "heterofl", "fedrolex"}))
def test_every_method_trains_a_plugin_with_a_frozen_backbone(name):
    """Only the plugin, the head and the method's own modules are parameters at all; and they move."""
    patterns = {"fedbn": ["lora", "head"], "fedtp": ["lora"]}
    keys = {"personal": patterns[name]} if name in patterns else {}
    keys |= {"ranks": [1, 2]} if "ranks" in ALGORITHMS[name].model_fields else {}
    s = Simulation(algorithm={"name": name, **LORA, **keys})
    own = {"head", "lora", *ALGORITHMS[name].modules}
    assert all(own & set(n.split(".")) for n in s.engine.layout.names)
    before = torch.cat([s.shared, *map(torch.flatten, s.server.state.values())]), s.states.copy()
    if s.algorithm.prepares:
        s.prepare()
    together = s.round(0, [[0, 1, 2, 3]])
    assert together[0].accepted.all()
    after = torch.cat([s.shared, *map(torch.flatten, s.server.state.values())])
    assert not (torch.equal(before[0], after) and np.array_equal(before[1], s.states))


ON_LORA = {name for name, cls in ALGORITHMS.items() if cls.model_fields["freeze_backbone"].default is not False}


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - KEEP_A_MODEL - {"fedcp", "lgfedavg"} - ON_LORA))
def test_a_personal_head_and_norms_stay_with_their_client(name):
    """Of every method that takes patterns: vectorised as one by one, and nothing of another client in them."""
    keys = {"personal": ["head", "norm*"]}
    s, alone = (Simulation(algorithm={"name": name, **keys}, train={"optimizer": {"lr": 0.02}}) for _ in range(2))
    personal = set(s.engine.layout.names[s.engine.layout.num_shared_tensors :])
    assert {"head.weight", "blocks.0.norm1.weight", "norm.bias"} <= personal
    for round_ in range(2):
        s.round(round_, [[0, 1, 2]])
        alone.round(round_, [[2], [0], [1]])
    np.testing.assert_allclose(s.shared, alone.shared, atol=2e-4)
    np.testing.assert_allclose(s.states, alone.states, atol=2e-3)
    first, second = (
        s.engine.layout.split(s.engine.predictor(2, c, s.broadcast, s.state(c)).theta[0])[1] for c in (0, 1)
    )
    assert not torch.equal(first, second)


def test_a_key_of_a_plugin_without_one_is_refused():
    for key in ("mid_dim", "plugin_depth"):
        with pytest.raises(ValueError, match=f"'{key}' is about a plugin, and there is none"):
            ALGORITHMS["ditto"](**{key: 2})
    with pytest.raises(ValueError, match="'scale' is not used by the plugin 'prompt'"):
        ALGORITHMS["ditto"](plugin="prompt", scale=1.0)
    assert ALGORITHMS["ditto"](plugin="prefix").mid_dim == 256


def test_modules_of_a_method_do_not_change_the_models_initial_values():
    plain, own = (tiny(algorithm={"name": name}) for name in ("fedavg", "gpfl"))
    models = [build_model(c.model, c.algorithm, 10, 1, 0) for c in (plain, own)]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert set(second) - set(first) == {n for n in second if n.startswith(("embedding", "cov"))}
    assert "embedding.weight" in layout_of(models[1], own.algorithm).names
