import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from raysim.algorithms import ALGORITHMS
from raysim.config.loading import children
from raysim.errors import ConfigError
from raysim.experiments.tuning.space import LR, changes, distributions, space_of, start_of, with_values
from raysim.search_space import Range, Tuned

from configs import tiny


def entry(algorithm="fedprox", space="auto", **changes):
    return tiny(algorithm={"name": algorithm}, tune={"space": space}, **changes)


def numeric(annotation):
    return annotation in (int, float, int | None, float | None)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_says_where_each_of_its_numbers_is_searched_or_why_not(name):
    cls = ALGORITHMS[name]
    for field in cls.model_fields.values():
        if numeric(field.annotation):
            (tuned,) = (item for item in field.metadata if isinstance(item, Tuned))
            assert tuned.source
    optimizer = {"optimizer": {"name": cls.local_optimizers[0]}}
    config = entry(name, train=optimizer)
    space = space_of(name, config)
    assert LR in space
    for key, given in space.items():
        ends = given if isinstance(given, list) else [given.low, given.high]
        for value in ends:
            with_values(config, {key: value}, name)  # is allowed
        default = None if key == LR else getattr(config.algorithm, key.removeprefix("algorithm."))
        if isinstance(default, float | int):
            assert default in given if isinstance(given, list) else given.low <= default <= given.high
    if start_of(config, distributions(config, space)) is not None:
        assert start_of(config, distributions(config, space)).keys() == space.keys()


def test_auto_is_the_learning_rate_and_what_the_method_declares():
    assert list(space_of("a", entry("fedavg"))) == [LR]
    assert space_of("a", entry("fedavg"))[LR] == Range(1e-3, 1.0, log=True)
    adamw = entry("fedavg", train={"optimizer": {"name": "adamw"}})
    assert space_of("a", adamw)[LR] == Range(1e-4, 0.1, log=True)
    assert space_of("a", entry())["algorithm.mu"] == [0.001, 0.01, 0.1, 0.5, 1.0]
    assert "algorithm.scale" in space_of("a", entry("fedperfix"))
    plugin = {"name": "fedprox", "plugin": "prefix"}
    assert "algorithm.scale" in space_of("a", tiny(algorithm=plugin, tune={}))
    assert "algorithm.scale" not in space_of("a", entry())  # without a plugin


def test_distributions_are_those_of_the_keys():
    config = entry(
        space={
            LR: {"low": 0.001, "high": 1, "log": True},
            "train.batch_size": {"low": 4, "high": 64},
            "train.optimizer.nesterov": [False],
            "model.kwargs.drop_rate": {"low": 0.0, "high": 0.5},
            "data.augment": ["none", "flip"],
        }
    )
    found = distributions(config, space_of("a", config))
    assert found == {
        LR: FloatDistribution(0.001, 1.0, log=True),
        "train.batch_size": IntDistribution(4, 64),
        "train.optimizer.nesterov": CategoricalDistribution([False]),
        "model.kwargs.drop_rate": FloatDistribution(0.0, 0.5),
        "data.augment": CategoricalDistribution(["none", "flip"]),
    }


def test_the_first_trial_is_the_configuration_if_it_lies_in_the_space():
    given = {LR: {"low": 0.05, "high": 1.0}, "algorithm.mu": [0.01, 0.1]}
    config = entry(space=given)
    dists = distributions(config, space_of("a", config))
    assert start_of(config, dists) == {LR: 0.1, "algorithm.mu": 0.1}
    outside = entry(space={**given, "algorithm.mu": [0.01, 0.5]})
    assert start_of(outside, distributions(outside, space_of("a", outside))) is None


def test_an_entry_adds_its_keys_to_those_of_auto():
    config = entry(space={"train.optimizer.momentum": [0.0, 0.9]})
    assert space_of("a", config, auto=True).keys() == {LR, "algorithm.mu", "train.optimizer.momentum"}
    assert space_of("a", config).keys() == {"train.optimizer.momentum"}


def test_nothing_else_changes_than_the_values():
    config = entry(model={"kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}})
    values = {"model.kwargs.drop_rate": 0.1, "model.name": "vit_small_patch16_224", "algorithm.mu": 0.5}
    found = with_values(config, values, "a")
    assert found.model.kwargs == {**config.model.kwargs, "drop_rate": 0.1}
    study = [{"name": "b", "algorithm": {"name": "local"}, "model": {"name": "vit_base_patch16_224"}}]
    study[0] |= changes(config, values, "a")
    ((_, child),) = children(tiny(study=study))
    kept = {"name", "study", "tune"}
    assert child.model_dump(exclude=kept) == found.model_dump(exclude=kept)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"algorithm.lamda": [1.0]}, r"algorithm\.lamda: the entry 'a' \(fedprox\) has no such key; give it to those"),
        ({"train.optimizer.rate": [1.0]}, r"train\.optimizer\.rate: the entry 'a' \(fedprox\) has no such key"),
        (
            {"algorithm.mu": {"low": -1.0, "high": 1.0}},
            r"algorithm\.mu: -1\.0 is not allowed for the entry 'a': .*greater",
        ),
        ({"train.optimizer.momentum": [0.5, 1.0]}, r"train\.optimizer\.momentum: 1\.0 is not allowed"),
        ({"train.batch_size": {"low": 1.5, "high": 8}}, r"train\.batch_size: takes whole numbers only"),
        ({"train.schedule": {"low": 1, "high": 8}}, r"train\.schedule: takes no numbers, so give a list"),
        ({"rounds": [5, 10]}, r"rounds: can't be tuned; what can is under algorithm"),
        ({"data.num_clients": [5]}, r"data\.num_clients: can't be tuned"),
        ({"algorithm.name": ["local"]}, r"algorithm\.name: can't be tuned"),
        ({"train.optimizer": [1]}, r"train\.optimizer: the entry 'a' \(fedprox\) has no such key"),
    ],
)
def test_a_wrong_space_is_refused(space, message):
    with pytest.raises(ConfigError, match=message):
        space_of("a", entry(space=space))


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"space": {}}, "space is empty: give keys with ranges, or 'auto'"),
        ({"space": {LR: {"low": 1.0, "high": 0.1}}}, "low is 1 and high is 0.1: low must be below high"),
        ({"space": {LR: {"low": 0, "high": 0.1, "log": True}}}, "a logarithmic range begins above 0"),
        ({"space": {LR: []}}, "has no values to choose from"),
        ({"space": {LR: [0.1, 0.1]}}, "has a value twice"),
        ({"space": {LR: [[0.1]]}}, "is no number, text, true or false"),
        ({"space": {LR: {"low": 0.1, "high": 1.0, "step": 1}}}, "Unexpected keyword|unknown|Extra"),
        ({"metric": "personalized/accuracy_mean"}, "which is about test samples"),
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"budget": "seconds"}, "'seconds' is the budget 'seconds': give both or none"),
        ({"trials": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_block_is_refused(tune, message):
    with pytest.raises(ValueError, match=message):
        tiny(tune=tune)
