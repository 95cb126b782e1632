"""Every mistake in a configuration is told with its place and a remedy."""

import pytest
import yaml

from raysim.config.loading import children, config_of, dump, load_config
from raysim.config.schema import Config
from raysim.errors import ConfigError

from configs import TINY, tiny

STUDY = {
    "study": [
        {"name": "perfix", "seeds": [0, 1]},
        {"name": "avg", "algorithm": {"name": "fedavg"}, "train": {"optimizer": {"lr": 0.5}}},
    ]
}


@pytest.fixture
def load(tmp_path):
    def load(content, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_config(path, overrides)

    return load


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "algorithm: {name: fedavg}\ntrian: {}",
            r"run\.yaml: trian: unknown key; did you mean 'train'\? Valid here: name",
        ),
        (
            "algorithm: {name: fedavg}\ntrain: {optimizer: {learning_rate: 1}}",
            r"run\.yaml: train\.optimizer\.learning_rate: unknown key.*Valid here: name, lr, personal_lr, momentum, nesterov",
        ),
        (
            "algorithm: {name: fedavg}\ntrain: {optimizer: {lr: fast}}",
            r"train\.optimizer\.lr: 'fast' is not allowed: .*number",
        ),
        ("algorithm: fedavg", r"algorithm: 'fedavg' is not allowed: input should be a mapping of keys"),
        ("algorithm: {name: fedavg}\ndata: null", r"data: None is not allowed: input should be a mapping of keys"),
        ("algorithm: {name: fedavg}\ntrain: {optimizer: {lr: .inf}}", r"train\.optimizer\.lr: inf .*finite"),
        ("algorithm: {name: fedperfix, scale: .nan}", r"algorithm\.scale: nan is not allowed: .*finite"),
        ("algorithm: {name: fedavg}\n1: 2", r"\[1\]: 1 is not allowed: keys should be strings"),
        ("algorithm: {name: fedavg}\nrounds: 0", r"rounds: 0 is not allowed: .*greater than or equal to 1"),
        ("algorithm: {name: fedavg}\nrounds: true", r"rounds: True is not allowed: .*integer"),
        (
            "algorithm: {name: fedavg}\nresources: {num_actors: few}",
            r"resources\.num_actors: 'few' is not allowed: .*'auto', or .*integer",
        ),
        (
            "algorithm: {name: fedavg}\ndata: {augment: mirror}",
            r"data\.augment: 'mirror' .*'none', 'flip' or 'crop_flip'",
        ),
        ("algorithm: {name: fedprefix}", r"algorithm\.name: .*'fedprefix'; did you mean 'fedperfix'\?"),
        ("algorithm: {name: 3}", r"algorithm\.name: 3 is not a name\. Choose one of: local"),
        ("algorithm: {name: 'nowhere:Mine'}", r"algorithm\.name: there is no module 'nowhere'"),
        ("algorithm: {name: 'methods:Mine'}", r"the module 'methods' .* has no 'Mine'"),
        ("algorithm: {name: fedperfix, mid_dims: 4}", r"algorithm\.mid_dims: unknown key; did you mean 'mid_dim'\?"),
        ("algorithm: {name: fedperfix, mid_dim: 0}", r"algorithm\.mid_dim: 0 is not allowed: .*greater than"),
        ("algorithm: {name: fedavg, mu: 1.0}", r"algorithm\.mu: unknown key"),
        ("rounds: 3", r"algorithm: is required"),
        (
            "algorithm: {name: fedavg}\ncohort: {size: 3, fraction: 0.5}",
            r"cohort: give exactly one of .*fraction, size",
        ),
        ("algorithm: {name: fedavg}\ncohort: {size: 17}", r"cohort\.size is 17, but data\.num_clients is 16"),
        (
            "algorithm: {name: fedavg}\nrounds: 2\ncohort: {schedule: [[0, 1], [16]]}",
            r"cohort\.schedule has client 16, but ids go from 0 to 15",
        ),
        (
            "algorithm: {name: fedavg}\nrounds: 2\ncohort: {schedule: [[0]]}",
            r"cohort\.schedule has 1 rounds, but rounds is 2",
        ),
        ("algorithm: {name: fedavg}\nrounds: 1\ncohort: {schedule: [[1, 1]]}", r"schedule\[0\] is \[1, 1\]"),
        ("algorithm: {name: fedavg}\nevaluate: {clients: 17}", r"evaluate\.clients is 17"),
        (
            "algorithm: {name: fedavg}\ndata: {partition: {name: iid, alpha: 1}}",
            r"data\.partition: 'alpha' is not used by the partition 'iid'",
        ),
        (
            "algorithm: {name: fedavg}\ndata: {partition: {name: file}}",
            r"data\.partition: the partition 'file' needs 'path'",
        ),
        (
            "algorithm: {name: fedavg}\ndata: {name: npz, rotated_domains: true}",
            r"data: 'rotated_domains' is an option of",
        ),
        (
            "algorithm: {name: fedavg}\ntrain: {optimizer: {name: adamw, momentum: 0.9}}",
            r"train\.optimizer: 'momentum'",
        ),
        (
            "algorithm: {name: fedavg}\nmodel: {pretrained: true, weights: x}",
            r"model: give 'pretrained: true' or 'weights'",
        ),
        ("algorithm: {name: fedavg}\ndata: {root: x}", r"data: 'root' is not used by 'digits'"),
        ("algorithm: {name: fedavg}\nmodel: {kwargs: {num_classes: 3}}", r"model: kwargs can't set 'num_classes'"),
        ("algorithm: {name: fedavg}\n'study[0]': 1", r"study\[0\]: unknown key; did you mean 'study'"),
        (
            "algorithm: {name: fedavg}\nseed: 1\nseed: 2",
            r"run\.yaml: not valid YAML: the key 'seed' appears twice.*line 3",
        ),
        ("algorithm: {name: fedavg", r"run\.yaml: not valid YAML"),
        ("- fedavg", r"run\.yaml: must be a mapping .*not list"),
        ("", r"run\.yaml: must be a mapping"),
    ],
)
def test_mistakes_are_named(load, content, message):
    with pytest.raises(ConfigError, match=message):
        load(content)


def test_all_problems_are_told_at_once(load):
    with pytest.raises(ConfigError) as caught:
        load("algorithm: {name: fedavg}\nrounds: no\nseed: -1\ndata: {num_client: 4}")
    assert len(caught.value.problems) == 3


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: can't be read"):
        load_config(tmp_path / "none.yaml")


def test_numbers_may_be_written_as_people_do(load):
    assert load("algorithm: {name: fedavg}\ntrain: {optimizer: {lr: 1e-3}}").train.optimizer.lr == 0.001


def test_overrides_by_dotted_path(load):
    config = load(TINY, "train.optimizer.lr=2e-2", "data.num_clients=5", "algorithm.personal=[head]", "name=other")
    assert (config.train.optimizer.lr, config.data.num_clients, config.name) == (0.02, 5, "other")
    assert config.algorithm.model_dump()["personal"] == ["head"]
    assert config.train.batch_size == TINY["train"]["batch_size"]


def test_overrides_replace_blocks_whose_keys_would_clash(load):
    config = load(TINY, "algorithm.name=fedavg", "cohort.size=3", "data.partition.name=iid")
    assert (config.algorithm.name, config.cohort_size, config.data.partition.name) == ("fedavg", 3, "iid")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", r"command line: 'train\.lr' is not of the form"),
        ("train.optimiser.lr=1", r"command line: train\.optimiser: unknown key; did you mean 'optimizer'"),
        ("train.batch_size=0", r"command line: train\.batch_size: 0 is not allowed"),
        ("rounds=[", r"command line: rounds: not valid YAML"),
    ],
)
def test_wrong_overrides(load, override, message):
    with pytest.raises(ConfigError, match=message):
        load(TINY, override)


def test_what_is_wrong_in_the_file_is_not_laid_on_the_command_line(load):
    with pytest.raises(ConfigError) as caught:
        load({**TINY, "round": 1}, "rounds=0", "train.batch_size=4")
    told = [problem.split(": ")[:2] for problem in caught.value.problems]
    assert sorted(path for where, path in told if where == "command line") == ["rounds"]
    assert [path for where, path in told if where != "command line"] == ["round"]


def test_a_study_has_a_child_per_entry_and_seed(load):
    runs = children(load({**TINY, **STUDY}))
    assert [(entry, child.name, child.seed) for entry, child in runs] == [
        ("perfix", "perfix · seed 0", 0),
        ("perfix", "perfix · seed 1", 1),
        ("avg", "avg · seed 0", 0),
    ]
    assert runs[0][1].algorithm.model_dump()["mid_dim"] == 4
    assert runs[2][1].algorithm.model_dump(exclude_defaults=True) == {
        "name": "fedavg"
    }  # nothing of the file's block is left
    assert (runs[2][1].train.optimizer.lr, runs[2][1].train.batch_size) == (0.5, 8)


def test_the_command_line_comes_before_the_entries(load):
    runs = children(load({**TINY, **STUDY}, "train.batch_size=4"))
    assert {child.train.batch_size for _, child in runs} == {4}


@pytest.mark.parametrize(
    "override", ["algorithm.mid_dim=8", "seed=3", "train.optimizer.lr=1", "train.optimizer={lr: 1}"]
)
def test_an_override_of_what_the_entries_vary_is_an_error(load, override):
    with pytest.raises(ConfigError, match=r"command line: .*study\[\d\].*study=null"):
        load({**TINY, **STUDY}, override)
    load({**TINY, **STUDY}, override, "study=null")


@pytest.mark.parametrize(
    ("entry", "override"),
    [
        ({"cohort": {"size": 4}}, "cohort.fraction=0.25"),
        ({"data": {"partition": {"name": "dirichlet", "alpha": 1.0}}}, "data.partition.min_samples=5"),
    ],
)
def test_an_override_of_a_block_that_an_entry_replaces_is_an_error(load, entry, override):
    content = {**TINY, "study": [{"name": "a", **entry}]}
    with pytest.raises(ConfigError, match=r"command line: .*study\[0\]"):
        load(content, override)


def test_an_override_beside_what_an_entry_changes_reaches_it(load):
    content = {**TINY, "study": [{"name": "a", "data": {"partition": {"alpha": 1.0}}}]}
    ((_, child),) = children(load(content, "data.partition.min_samples=5"))
    assert (child.data.partition.alpha, child.data.partition.min_samples) == (1.0, 5)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"algorithm": {"name": "fedavg"}}], r"study\[0\]\.name: every entry needs a name"),
        ([{"name": "a"}, {"name": "a"}], r"study\[1\]\.name: 'a' is the name of an earlier entry"),
        ([{"name": "a", "seeds": 3}], r"study\[0\]\.seeds: 3 is not a list"),
        ([{"name": "a", "seeds": [1, 1]}], r"study\[0\]\.seeds: .*twice"),
        ([{"name": "a"}, {"name": "b", "algoritm": {}}], r"study\[1\]: algoritm: unknown key"),
        ([{"name": "a", "algorithm": {"scale": 2.0}}], r"study\[0\]: algorithm\.name: None is not a name"),
        ([{"name": "a", "tracking": {"uri": "x"}}], r"study\[0\]\.tracking: belongs to the whole study"),
        ([], r"study: has no entries"),
    ],
)
def test_mistakes_in_a_study(load, entries, message):
    with pytest.raises(ConfigError, match=message):
        load({**TINY, "study": entries})


@pytest.mark.parametrize("content", [TINY, {**TINY, **STUDY}])
def test_the_dumped_configuration_is_accepted_again(load, content):
    config = load(content)
    assert load(dump(config)) == config


def test_flat_parameters():
    flat = tiny().flat()
    assert flat["train.optimizer.lr"] == 0.1
    assert flat["algorithm.mid_dim"] == 4
    assert "study" not in flat


def test_every_key_is_documented():
    def undocumented(schema, prefix=""):
        for name, field in schema.model_fields.items():
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from undocumented(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield prefix + name

    assert list(undocumented(Config)) == []


def test_the_files_in_the_repository_are_valid(pytestconfig):
    files = sorted((pytestconfig.rootpath / "yaml").rglob("*.yaml"))
    assert files
    for file in files:
        assert children(load_config(file))


def test_merge_keys_of_yaml(load):
    text = "x: &base {name: fedavg}\nalgorithm: {<<: *base}\n"
    with pytest.raises(ConfigError, match="x: unknown key"):
        load(text)
    config = load("algorithm: &a {name: fedperfix, mid_dim: 3}\nstudy: [{name: b, algorithm: {<<: *a, mid_dim: 4}}]\n")
    assert children(config)[0][1].algorithm.mid_dim == 4


def test_a_file_nested_without_end(load):
    with pytest.raises(ConfigError, match="nested too deeply"):
        load("[" * 5000)


def test_kwargs_belong_to_the_model_that_is_named(load):
    base = "algorithm: {name: fedavg}\nmodel: {kwargs: {depth: 2}}\n"
    other = "{name: a, model: {name: resnet50, kwargs: {stem_width: 8}}}"
    study = f"study: [{other}, {{name: b, model: {{kwargs: {{embed_dim: 8}}}}}}]\n"
    first, second = (run.model.kwargs for _, run in children(load(base + study)))
    assert first == {"stem_width": 8}
    assert second == {"depth": 2, "embed_dim": 8}
    assert load(base, "model.kwargs={}").model.kwargs == {}


def test_what_befalls_a_cohort_may_be_changed_without_saying_who_trains():
    raw = {"algorithm": {"name": "fedavg"}, "cohort": {"size": 4}, "study": [{"name": "a", "cohort": {"dropout": 0.5}}]}
    config = config_of(raw, ["cohort.stragglers=0.25"], "file")
    assert config.cohort.model_dump() == {
        "fraction": None,
        "size": 4,
        "schedule": None,
        "sampling": "uniform",
        "dropout": 0.0,
        "stragglers": 0.25,
        "on_failure": "stop",
    }
    ((_, child),) = children(config)
    assert (child.cohort.size, child.cohort.dropout, child.cohort.stragglers) == (4, 0.5, 0.25)
    assert config_of(raw, ["cohort.fraction=0.5"], "file").cohort.size is None
    with pytest.raises(ConfigError, match=r"cohort\.dropout: study\[0\] \(a\) sets cohort.dropout itself"):
        config_of(raw, ["cohort.dropout=0.1"], "file")
    raw["study"][0]["cohort"] = {"fraction": 0.5}
    with pytest.raises(ConfigError, match=r"cohort\.size: study\[0\] \(a\) sets cohort.fraction itself"):
        config_of(raw, ["cohort.size=3"], "file")
    assert children(config_of(raw, ["cohort.dropout=0.1"], "file"))[0][1].cohort.dropout == 0.1


def test_a_pooled_model_has_no_participants():
    with pytest.raises(ConfigError, match="dropout and stragglers are not used by 'centralized'"):
        config_of({"algorithm": {"name": "centralized"}, "cohort": {"fraction": 1.0, "dropout": 0.1}}, [], "file")
