import pytest
import torch
from torch import nn

from raysim.errors import ConfigError
from raysim.functional.parameters import ParameterLayout, matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("head", "head.weight", True),
        ("head", "blocks.0.head_norm.weight", False),
        ("blocks.1", "blocks.1.norm1.weight", True),
        ("blocks.1", "blocks.11.norm1.weight", False),
        ("norm*", "blocks.3.norm1.weight", True),
        ("norm", "blocks.3.norm1.weight", False),
        ("adapter", "blocks.0.attn.qkv.adapter.down.weight", True),
        ("blocks.*.attn", "blocks.7.attn.proj.bias", True),
        ("attn.qkv.weight", "blocks.7.attn.qkv.weight", True),
        ("attn.weight", "blocks.7.attn.qkv.weight", False),
        ("*", "cls_token", True),
    ],
)
def test_patterns_match_whole_components(pattern, name, expected):
    assert matches(name, pattern) is expected


def model():
    return nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 2, bias=False)})


def test_shared_come_first_in_the_models_own_order():
    layout = ParameterLayout.of(model(), ["body.bias"])
    assert layout.names == ("body.weight", "head.weight", "body.bias")
    assert (layout.num_shared, layout.num_personal, layout.num_parameters) == (12, 3, 15)


def test_flatten_and_unflatten_are_inverse():
    net = model()
    layout = ParameterLayout.of(net, ["head"])
    theta = layout.flatten(net.state_dict())
    assert theta.tolist() == [*net["body"].weight.flatten(), *net["body"].bias, *net["head"].weight.flatten()]
    for name, tensor in layout.unflatten(theta).items():
        assert torch.equal(tensor, net.get_parameter(name))
    shared, personal = layout.split(theta)
    assert torch.equal(layout.join(shared, personal), theta)
    assert len(personal) == 6


def test_mask_marks_the_matching_elements():
    layout = ParameterLayout.of(model(), ["head"])
    assert layout.mask(["bias"]).nonzero().flatten().tolist() == [6, 7, 8]
    assert layout.mask(["head"]).sum() == 6


def test_everything_or_nothing_personal():
    assert ParameterLayout.of(model(), ["*"]).num_shared == 0
    assert ParameterLayout.of(model()).num_personal == 0


def test_a_pattern_that_matches_nothing_lists_what_exists():
    with pytest.raises(ConfigError, match=r"'adapter' matches no parameter.*body, weight, bias, head"):
        ParameterLayout.of(model(), ["head", "adapter"])


def test_the_table_shows_counts_and_bytes():
    table = ParameterLayout.of(model(), ["head"]).table()
    assert "shared 9 · personal 6 · 36 bytes of parameters down" in table
    assert any(line.split() == ["head", "personal", "1", "6"] for line in table.splitlines())


def test_a_pattern_with_an_exclamation_mark_takes_parameters_out_again():
    layout = ParameterLayout.of(make_net(), ["*", "!1"])
    assert layout.names[: layout.num_shared_tensors] == ("1.weight", "1.bias")
    assert ParameterLayout.of(make_net(), ["!1"]).num_personal == 0
    with pytest.raises(ConfigError, match="the pattern '!nothing' matches no parameter"):
        ParameterLayout.of(make_net(), ["*", "!nothing"])


def test_a_piece_is_a_tensor_of_a_vector_of_all_or_of_the_shared_parameters():
    net = make_net()
    layout = ParameterLayout.of(net, ["0"])
    theta = layout.flatten(net.state_dict())
    for name, tensor in layout.unflatten(theta).items():
        assert torch.equal(layout.piece(theta, name), tensor)
    shared = layout.split(torch.stack([theta, 2 * theta]))[0]
    assert torch.equal(layout.piece(shared, "1.weight")[1], 2 * net[1].weight)
    with pytest.raises(ConfigError, match="needs one linear classifier that trains, not head"):
        _ = layout.head_shape


def make_net():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
