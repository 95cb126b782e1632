"""A user's own code by ``module:name``: found, its options checked like other keys, its source part of the fingerprint."""

import functools
import linecache
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import raysim
from raysim import own_code
from raysim.algorithms.fedperfix import FedPerfix
from raysim.config.fingerprint import algorithm_digest
from raysim.config.loading import children, config_of, dump
from raysim.config.overrides import merge
from raysim.data.dataset import Dataset
from raysim.errors import ConfigError
from raysim.experiments.preparation import check, prepare
from raysim.federation.cohort import sample_cohort
from raysim.federation.metrics.clients import ClientResults
from raysim.script_source import main_source
from raysim.training.engine import make_optimizer

import own
from configs import TINY, tiny
from methods import Slow

METHOD = {"algorithm": {"name": "fedavg", "personal": ["3"]}}
OWN = {**TINY, **METHOD, "data": {**own.DATA, "partition": own.PARTITION}, "model": own.MODEL}


def own_run(**changes):
    return raysim.Config.model_validate(merge(OWN, changes))


def test_data_partition_and_model_of_ones_own():
    (run,) = prepare(own_run())
    assert run.dataset.class_names == ("horizontal", "vertical")
    assert run.dataset.images.shape == (240, 6, 6, 1)
    assert run.partition.num_clients == 8
    assert len(np.unique(run.partition.indices)) == len(run.partition.indices) == 238
    assert (run.layout.num_shared, run.layout.num_personal) == (37 * 12, 13 * 2)
    other_seed, same = prepare(own_run(seed=1))[0], prepare(own_run())[0]
    assert run.partition.digest == same.partition.digest != other_seed.partition.digest
    np.testing.assert_array_equal(run.initial, same.initial)  # the model's initial values follow from the seed
    assert not np.array_equal(run.initial, other_seed.initial)


def test_a_written_file_gives_the_same_run():
    config = own_run()
    assert config_of(yaml.safe_load(dump(config)), [], "file") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"options": {"sides": 6}}},
            r"data\.options\.sides: own:stripes has no such option; it has side, samples",
        ),
        ({"data": {"options": {"side": None}}}, r"data\.options\.side: Input should be a valid integer"),
        ({"data": {"options": {"side": "6"}}}, r"data\.options\.side: Input should be a valid integer"),
        ({"data": {"name": "own:nothing"}}, r"data\.name: the module 'own' \(.*own\.py\) has no 'nothing'"),
        ({"data": {"name": "nowhere:f"}}, r"data\.name: there is no module 'nowhere'"),
        ({"data": {"partition": {"options": {"odd": 1}}}}, r"data\.partition\.options\.odd: .* it has skip"),
        ({"data": {"partition": {"name": "own:none"}}}, r"data\.partition\.name: the module 'own'"),
        ({"model": {"kwargs": {"wide": 1}}}, r"model\.kwargs\.wide: own:perceptron has no such option"),
        ({"model": {"kwargs": {"width": 1.5}}}, r"model\.kwargs\.width: Input should be a valid integer"),
        ({"model": {"name": "own:DATA"}}, "model.name: 'own:DATA' is a dict, not a function"),
    ],
)
def test_mistakes_are_named_as_in_other_keys(changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(own_run(**changes))


def test_a_function_of_data_is_called_with_what_the_user_wrote(monkeypatch):
    called = []

    def data(config, **options):
        called.append(config.num_clients)
        return stripes(config, side=6, samples=30 * config.num_clients)

    stripes = own.stripes
    monkeypatch.setattr(own, "stripes", data)
    entries = [{"name": str(n), "data": {"num_clients": n, "options": {"side": 6}}} for n in (4, 8)]
    four, eight = prepare(own_run(study=entries, evaluate={"new_clients": 2}))
    assert called == [4, 8]
    assert (len(four.dataset.labels), len(eight.dataset.labels)) == (120, 240)


def test_a_study_of_own_and_other_data_and_of_methods_made_in_python():
    entries = [{"name": "own"}, {"name": "digits", "data": {"name": "digits", "options": None}, "model": {**own.MODEL}}]
    assert [run.dataset.num_classes for run in prepare(own_run(study=entries))] == [2, 10]
    made = [{"name": "a", "algorithm": FedPerfix(mid_dim=4)}, {"name": "b", "algorithm": Slow()}]
    config = raysim.Config.model_validate({**TINY, "study": made})
    again = config_of(config.model_dump(mode="json"), [], "again")
    assert [run.algorithm.name for _, run in children(again)] == ["fedperfix", "methods:Slow"]


class Odd:
    """Signatures and annotations as people have them."""

    def later(config, *, a: "Nothing" = 1, b: "int" = 1):  # noqa: F821
        pass

    def pair(config, *, size: tuple[int, int], where: Path, array: np.ndarray = None):
        pass

    class Net:
        width: str

        def __init__(self, num_classes, in_chans, img_size, width: int = 1):
            pass


def test_options_are_checked_by_what_is_called(tmp_path):
    def check_data(function, **options):
        own_code.checked_options(function, options, "m:f", "data.options", ["config"])

    check_data(Odd.later, a="x", b=2)
    check_data(Odd.pair, size=[6, 6], where=str(tmp_path), array=[1])
    check_data(functools.partial(own.stripes, samples=8), side=6)
    for function, options, message in (
        (Odd.later, {"b": "x"}, r"data\.options\.b: Input should be a valid integer"),
        (Odd.pair, {"size": [6], "where": "x"}, r"data\.options\.size.*: Field required"),
        (lambda: 1, {}, "m:f must take config, in this order, and takes nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_data(function, **options)
    names = ["num_classes", "in_chans", "img_size"]
    own_code.checked_options(Odd.Net, {"width": 3}, "m:Net", "model.kwargs", names, by_name=True)
    with pytest.raises(ConfigError, match=r"model\.kwargs\.width: Input should be a valid integer"):
        own_code.checked_options(Odd.Net, {"width": "3"}, "m:Net", "model.kwargs", names, by_name=True)
    with pytest.raises(
        ConfigError, match="must take num_classes, in_chans, img_size, by these names, and takes num_classes"
    ):
        own_code.checked_options(lambda num_classes: 1, {}, "m:f", "model.kwargs", names, by_name=True)


def test_numbers_of_numpy_become_plain_ones():
    config = own_run(model={"kwargs": {"width": np.int64(5)}}, data={"options": {"side": np.int64(6)}})
    assert type(config.model.kwargs["width"]) is int
    assert config_of(yaml.safe_load(dump(config)), [], "file") == config
    with pytest.raises(ValueError, match="ndarray is nothing that a file can have"):
        own_run(model={"kwargs": {"width": np.ones(3)}})


def test_what_is_wrong_is_told_early():
    for changes, message in (
        ({"evaluate": {"metrics": ["own:DATA"]}}, "evaluate.metrics: 'own:DATA' is a dict, not a function"),
        ({"cohort": {"sampling": "own:DATA", "fraction": 0.5}}, "cohort.sampling: 'own:DATA' is a dict"),
        ({"evaluate": {"metrics": ["math:sqrt"]}}, "the source of the module 'math' can't be read"),
        ({"train": {"optimizer": {"name": "own:none"}}}, "train.optimizer.name: the module 'own'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(own_run(**changes))
    with pytest.raises(ConfigError, match="data.augment: own:stripes failed on images"):
        prepare(tiny(data={"augment": "own:stripes"}))


def test_a_plugin_that_adds_nothing(monkeypatch):
    monkeypatch.setattr(own, "PLUGIN", own.Plugin(lambda *given: None, "gain", None, None))
    with pytest.raises(ConfigError, match="algorithm.plugin: own:PLUGIN adds no parameters"):
        prepare(tiny(algorithm={"name": "fedavg", "plugin": "own:PLUGIN"}))


def test_a_missing_option():
    with pytest.raises(ConfigError, match=r"data\.options\.side: own:stripes needs it"):
        check(tiny(data={"name": "own:stripes", "subset": None}))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((np.zeros((4, 2, 2, 1)), np.arange(4) % 2), r"images that are float64 \(4, 2, 2, 1\), not uint8"),
        ((np.zeros((4, 2, 2), np.uint8), np.arange(4) % 2), r"images that are uint8 \(4, 2, 2\)"),
        ((np.zeros((4, 2, 2, 2), np.uint8), np.arange(4) % 2), r"with 1 or 3 channels"),
        ((np.zeros((0, 2, 2, 1), np.uint8), np.arange(0)), r"images that are empty"),
        ((np.zeros((4, 2, 2, 1), np.uint8), np.arange(3)), r"labels that are int64 \(3,\), not int64 \(4,\)"),
        ((np.zeros((4, 2, 2, 1), np.uint8), np.arange(4) % 3), r"labels from 0 to 2, and 2 names"),
        ((np.zeros((4, 2, 2, 1), np.uint8), np.arange(4) - 1), r"labels from -1 to 2"),
        ((np.zeros((4, 2, 2, 1), np.uint8), [0, 1, 0, 1]), r"labels that are a list"),
    ],
)
def test_what_a_function_returns_is_checked(made, message, monkeypatch):
    monkeypatch.setattr(own, "stripes", lambda config, **options: Dataset(*made, ("a", "b")))
    with pytest.raises(
        ConfigError, match=f"data.name: own:stripes returned {message}" if "with" not in message else message
    ):
        prepare(own_run())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([np.arange(30)] * 8, "a sample again for client 1"),
        ([np.arange(30)] * 3, "a list of 3, not a list of indices for each of 8 clients"),
        ([np.arange(240) + 30 * i for i in range(8)], "sample 269 for client 1"),
        ([[0.5]] * 8, r"float64 \(1,\) for client 0, not integers"),
        ([[]] * 8, "no samples for client 0"),
        ([np.array([-1, 5])] * 8, "sample -1 for client 0"),
        (None, "a NoneType, not a list"),
    ],
)
def test_what_a_partition_returns_is_checked(made, message, monkeypatch):
    monkeypatch.setattr(own, "in_turn", lambda *given, **options: made)
    with pytest.raises(ConfigError, match=f"data.partition.name: own:in_turn returned {message}"):
        prepare(own_run())


def test_a_model_must_be_one(monkeypatch):
    monkeypatch.setattr(own, "perceptron", lambda **options: 3)
    with pytest.raises(ConfigError, match=r"model.name: own:perceptron returned a int, not a torch.nn.Module"):
        prepare(own_run())
    monkeypatch.setattr(own, "perceptron", lambda **options: nn.Sequential(nn.Flatten(), nn.Linear(36, 5)))
    with pytest.raises(ConfigError, match=r"gives \(1, 5\) numbers for an image, not one for each of 2 classes"):
        prepare(own_run())


def test_a_model_on_the_hub_or_in_a_folder(tmp_path):
    import timm

    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=10, in_chans=1, **kwargs)
    given = {"img_size": 8, "in_chans": 1, **kwargs}
    timm.models.save_for_hf(model, tmp_path, model_args=given, safe_serialization=True)
    for pretrained in (False, True):
        local = {"name": f"local-dir:{tmp_path}", "image_size": 8, "kwargs": {}, "pretrained": pretrained}
        (run,) = prepare(tiny(model=local, algorithm={"name": "fedavg"}))
        theta = run.layout.flatten(model.state_dict())
        assert torch.equal(torch.from_numpy(run.initial), theta) is pretrained
    with pytest.raises(ConfigError, match="model.name: timm can't|model: timm can't build|can't be fetched"):
        prepare(tiny(model={"name": f"local-dir:{tmp_path}/none", "image_size": 8}))


def test_options_are_refused_where_nothing_of_ones_own_is():
    for changes in ({"data": {"options": {"a": 1}}}, {"data": {"partition": {"options": {"a": 1}}}}):
        with pytest.raises(ValueError, match="options"):
            tiny(**changes)
    with pytest.raises(ValueError, match="'pretrained' weights are timm's"):
        tiny(model={**own.MODEL, "pretrained": True})


def test_a_plugin_of_ones_own():
    algorithm = {"name": "fedavg", "plugin": "own:PLUGIN", "personal": ["gain"], "freeze_backbone": True}
    (run,) = prepare(tiny(algorithm=algorithm))
    assert run.layout.num_personal == 16
    assert run.layout.num_shared == 16 * 10 + 10  # the head
    assert run.config.algorithm.scale == 1.0  # its default is written down
    for wrong, message in (("own:spread", "is a function, not a raysim.Plugin"), ("own:none", "has no 'none'")):
        with pytest.raises(ValueError, match=f"algorithm.plugin: .*{message}"):
            tiny(algorithm={"name": "fedavg", "plugin": wrong})
    with pytest.raises(ValueError, match="'mid_dim' is not used by the plugin 'own:PLUGIN'"):
        tiny(algorithm={**algorithm, "mid_dim": 4})


def test_a_cohort_of_ones_own(monkeypatch):
    config = tiny(cohort={"fraction": 0.5, "sampling": "own:the_first"})
    assert sample_cohort(config, 3).tolist() == [0, 1, 2, 3]
    for made, message in (
        ([0, 1, 2], r"int64 \(3,\) for round 3, not 4 different client ids"),
        ([0, 1, 2, 2], "a client twice"),
        ([0, 1, 2, 8], "client 8 for round 3; ids go to 7"),
        ([-1, 1, 2, 3], "client -1"),
        ([0.0, 1.0, 2.0, 3.0], "float64"),
    ):
        monkeypatch.setattr(own, "the_first", lambda *given, made=made: made)
        with pytest.raises(ConfigError, match=f"cohort.sampling: own:the_first returned {message}"):
            sample_cohort(config, 3)
    with pytest.raises(ValueError, match="'sampling' is not used by a schedule"):
        tiny(cohort={"fraction": None, "schedule": [[0], [1]], "sampling": "own:the_first"})


@pytest.mark.parametrize("made", [torch.zeros(2, 8, 8, 1), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 3])
def test_what_an_augmentation_returns_is_checked(made, monkeypatch):
    prepare(tiny(data={"augment": "own:brighter"}))
    monkeypatch.setattr(own, "brighter", lambda images, u: made)
    with pytest.raises(ConfigError, match=r"data.augment: own:brighter made .* both must be the same"):
        prepare(tiny(data={"augment": "own:brighter"}))


def test_an_optimiser_of_ones_own():
    settings = tiny(train={"optimizer": {"name": "own:Sign", "lr": 0.1, "options": {"beta": 0.5}}}).train.optimizer
    optimizer = make_optimizer(settings, 0.05)
    theta = torch.tensor([1.0, 1.0])
    state = optimizer.init(theta)
    theta, state = optimizer.step(theta, torch.tensor([2.0, -1.0]), state)
    theta, state = optimizer.step(theta, torch.tensor([-0.5, -1.0]), state)
    torch.testing.assert_close(theta, torch.tensor([0.9, 1.1]))
    for changes, message in (
        ({"options": {"gamma": 1.0}}, r"train\.optimizer\.options\.gamma: own:Sign has no such option; it has beta"),
        ({"options": {"beta": "high"}}, r"train\.optimizer\.options\.beta: Input should be a valid number"),
        ({"name": "own:spread"}, "is no subclass of raysim.Optimizer"),
        ({"name": "own:Adam"}, "has no 'Adam'"),
    ):
        config = tiny(train={"optimizer": {"name": "own:Sign", **changes}})
        with pytest.raises(ConfigError, match=message):
            check(config)
    with pytest.raises(ValueError, match="'options' are those of an optimiser of your own"):
        tiny(train={"optimizer": {"options": {"beta": 0.5}}})
    with pytest.raises(ValueError, match="'fednova' needs sgd, not own:Sign"):
        tiny(algorithm={"name": "fednova"}, train={"optimizer": {"name": "own:Sign"}})


def test_a_metric_of_ones_own():
    results = ClientResults(np.array([0, 1]), np.array([1, 3]), np.array([4, 4]), np.ones((8, 2), np.float32))
    labels = np.array([0, 1, 0, 1, 1, 1, 1, 1])
    assert results.own_metrics("aggregated", {"own:spread": own.spread}, labels, {}) == {
        "aggregated/spread": 0.5,
        "aggregated/positive": 0.75,
    }
    for made, message in (
        (3, "returned a int, not numbers by name"),
        ({"a b": 1}, "returned the name 'a b'"),
        ({"a": "high"}, "returned 'high' for 'a', no number"),
        ({"accuracy_mean": 1}, "returned 'accuracy_mean', which there is already"),
    ):
        functions = {"own:f": lambda results, labels, made=made: made}
        with pytest.raises(ConfigError, match=f"evaluate.metrics: own:f {message}"):
            results.own_metrics("aggregated", functions, labels, {"aggregated/accuracy_mean": 0.5})


# Made in Python.


def test_a_method_made_in_python_has_its_name():
    config = raysim.Config(algorithm=FedPerfix(mid_dim=4))
    assert config.algorithm.name == "fedperfix"
    assert raysim.Config.model_validate(config.model_dump(mode="json")) == config
    assert raysim.Config(algorithm=Slow(pause=0.0)).algorithm.name == "methods:Slow"


def test_a_method_that_no_name_leads_to():
    class Inner(FedPerfix):
        pass

    with pytest.raises(ValueError, match=r"Inner is defined inside of something else"):
        raysim.Config(algorithm=Inner())


def script(**values):
    """A module as a notebook would be: ``__main__`` with a method, a helper and a constant."""
    text = """
from raysim.algorithms.base import FederatedAlgorithm
FACTOR = {factor}
def helper(x):
    return {helper}
def unused():
    return {unused}
class Mine(FederatedAlgorithm):
    def client_step(self, carry, batch, ctx):
        return (lambda x: helper(x) * FACTOR)(1)
"""
    return text.format(**{"factor": 1, "helper": "x", "unused": 1, **values})


def digest(text, monkeypatch, tmp_path, notebook=False):
    """Of the method that ``__main__`` defines, as a script, or as a cell of a notebook, which is in no file."""
    file = "<cell 3>" if notebook else str(tmp_path / "script.py")
    main = types.ModuleType("__main__")
    linecache.clearcache()
    if notebook:
        monkeypatch.setitem(linecache.cache, file, (len(text), None, text.splitlines(keepends=True), file))
    else:
        main.__file__ = file
        Path(file).write_text(text)
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(compile(text, file, "exec"), main.__dict__)
    return algorithm_digest(raysim.Config(algorithm=main.Mine()))


@pytest.mark.parametrize("notebook", [False, True])
def test_the_source_of_a_method_of_a_script_is_what_it_uses(notebook, monkeypatch, tmp_path):
    first = digest(script(), monkeypatch, tmp_path, notebook)
    assert digest(script(), monkeypatch, tmp_path, notebook) == first
    assert digest(script(unused=2), monkeypatch, tmp_path, notebook) == first
    assert digest(script(helper="x + 1"), monkeypatch, tmp_path, notebook) != first
    assert digest(script(factor=2), monkeypatch, tmp_path, notebook) != first


WRAPPED = """
import functools, torch
from raysim.algorithms.base import FederatedAlgorithm
K = {k}
def deep(x):
    return x * {deep}
@functools.lru_cache
def kept(x):
    return x * {kept}
@torch.no_grad()
def decorated(x):
    return deep(x)
part = functools.partial(max, {part})
def with_default(x, k=K):
    return k
class Thing:
    def go(self):
        return {go}
thing, weights = Thing(), torch.tensor([{weight}])
rounds = {attribute}
def outer():
    inner = {closure}
    def use(x):
        return inner
    return use
closed = outer()
class Mine(FederatedAlgorithm):
    _scale = K
    class Inner:
        value = {inner}
    @functools.cached_property
    def cached(self):
        return {cached}
    def client_step(self, carry, batch, ctx):
        return decorated(1) + kept(1) + part(1) + with_default(1) + thing.go() + weights.sum() + ctx.rounds + closed(1)
"""
VALUES = dict.fromkeys(("k", "deep", "kept", "part", "go", "weight", "attribute", "closure", "inner", "cached"), 1)


@pytest.mark.parametrize("changed", VALUES)
def test_whatever_a_method_of_a_script_uses_is_part_of_it(changed, monkeypatch, tmp_path):
    first = digest(WRAPPED.format(**VALUES), monkeypatch, tmp_path)
    assert digest(WRAPPED.format(**VALUES), monkeypatch, tmp_path) == first
    other = digest(WRAPPED.format(**{**VALUES, changed: 2}), monkeypatch, tmp_path)
    assert (other == first) is (changed == "attribute")  # a global of the name of an attribute is not used


def test_the_source_is_the_same_text_in_every_process(tmp_path):
    code = "\n\nfrom raysim.script_source import main_source\nprint(main_source(Mine))"
    (tmp_path / "script.py").write_text(WRAPPED.format(**VALUES) + code)
    texts = {
        subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(texts) == 1
    assert b"def deep" in texts.pop()


def test_a_class_of_a_notebook_that_is_in_no_cell(monkeypatch, tmp_path):
    digest(script(), monkeypatch, tmp_path, notebook=True)
    mine = sys.modules["__main__"].Mine
    linecache.clearcache()
    with pytest.raises(ConfigError, match=r"the source of Mine can't be read.*put it into a module"):
        main_source(mine)


def test_the_source_of_a_model_is_part_of_the_fingerprint():
    assert algorithm_digest(own_run()) != algorithm_digest(tiny(**METHOD))


def test_a_module_that_fails_when_it_is_imported_shows_where(tmp_path, monkeypatch):
    (tmp_path / "odd_of_test.py").write_text("number = int('x')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for changes in (
        {"algorithm": {"name": "odd_of_test:Mine"}},
        {"algorithm": {"name": "fedavg", "plugin": "odd_of_test:P"}},
    ):
        with pytest.raises(
            ValueError, match=r"importing 'odd_of_test' failed:[\s\S]*odd_of_test.py\", line 1[\s\S]*int"
        ):
            tiny(**changes)


def test_what_is_not_defined_here_says_what_to_do():
    with pytest.raises(ConfigError, match=r"'__main__:Gone' was defined in a script or a notebook"):
        own_code.imported("__main__:Gone", "algorithm.name")
