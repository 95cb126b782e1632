"""A study as a grid, expanded to the entries that it stands for."""

import pytest

from raysim.config.loading import children, config_of
from raysim.errors import ConfigError

from configs import TINY


def runs(study, **changes):
    return children(config_of({**TINY, **changes, "study": study}, [], "file"))


def test_every_combination_is_a_run_named_by_what_varies():
    grid = {"algorithm.name": ["fedavg", "local"], "train.optimizer.lr": [0.1, 0.2], "seed": [0, 1], "rounds": [3]}
    found = runs({"grid": grid})
    names = ["fedavg lr=0.1", "fedavg lr=0.2", "local lr=0.1", "local lr=0.2"]
    assert [entry for entry, _ in found] == [name for name in names for _ in range(2)]
    assert [c.seed for _, c in found] == [0, 1] * 4
    assert [(c.algorithm.name, c.train.optimizer.lr) for _, c in found[::2]] == [
        ("fedavg", 0.1),
        ("fedavg", 0.2),
        ("local", 0.1),
        ("local", 0.2),
    ]
    assert {c.rounds for _, c in found} == {3}
    assert found[3][1].name == "fedavg lr=0.2 · seed 1"


def test_exclusions_and_additions():
    study = {
        "grid": {"algorithm.name": ["fedavg", "fedper"], "train.batch_size": [4, 8], "seed": [0, 1]},
        "exclude": [{"algorithm.name": "fedavg", "train.batch_size": 4}, {"algorithm.name": "fedper", "seed": 1}],
        "include": [{"algorithm.name": "local"}, {"algorithm.name": "fedper", "train.batch_size": 16, "seed": 5}],
    }
    assert [(entry, c.seed, c.train.batch_size) for entry, c in runs(study)] == [
        ("fedavg batch_size=8", 0, 8),
        ("fedavg batch_size=8", 1, 8),
        ("fedper batch_size=4", 0, 4),
        ("fedper batch_size=8", 0, 8),
        ("local", 0, 8),
        ("local", 1, 8),
        ("fedper batch_size=16", 5, 16),
    ]


def test_keys_of_the_files_own_algorithm_vary_in_its_block():
    found = runs({"grid": {"algorithm.mid_dim": [2, 4]}}, algorithm={"name": "fedperfix", "scale": 0.5})
    assert [(entry, c.algorithm.mid_dim, c.algorithm.scale) for entry, c in found] == [
        ("mid_dim=2", 2, 0.5),
        ("mid_dim=4", 4, 0.5),
    ]


def test_whole_algorithm_blocks_and_seeds_alone():
    blocks = [{"name": "fedavg"}, {"name": "fedperfix", "mid_dim": 8}]
    assert [entry for entry, _ in runs({"grid": {"algorithm": blocks}})] == ["fedavg", "fedperfix mid_dim=8"]
    assert [(entry, c.seed) for entry, c in runs({"grid": {"seed": [3, 4]}})] == [("fedperfix", 3), ("fedperfix", 4)]
    assert len(runs({"include": [{"rounds": 3}, {"rounds": 4}]})) == 2


def test_what_is_there_twice_is_one_run():
    twice = {"grid": {"algorithm.name": ["fedavg", "local"]}, "include": [{"algorithm.name": "local"}]}
    assert [entry for entry, _ in runs(twice)] == ["fedavg", "local"]
    assert len(runs({"grid": {"train.optimizer.lr": [0.1, 0.10], "seed": [0, 0, 1]}})) == 2


def test_the_files_own_algorithm_keeps_its_settings():
    found = runs({"grid": {"algorithm.name": ["fedperfix", "fedavg"]}}, algorithm={"name": "fedperfix", "mid_dim": 7})
    assert found[0][1].algorithm.mid_dim == 7
    assert found[1][1].algorithm.model_dump(exclude_defaults=True) == {"name": "fedavg"}
    more = {"grid": {"algorithm.scale": [1.0]}, "include": [{"algorithm.name": "fedperfix", "algorithm.scale": 3.0}]}
    found = runs(more, algorithm={"name": "fedperfix", "mid_dim": 7})
    assert [(c.algorithm.mid_dim, c.algorithm.scale) for _, c in found] == [(7, 1.0), (7, 3.0)]


def test_a_key_inside_a_whole_block_changes_only_its_own_run():
    grid = {"algorithm": [{"name": "fedperfix", "mid_dim": 2}], "algorithm.mid_dim": [4, 8], "seed": [0, 1]}
    assert [(c.algorithm.mid_dim, c.seed) for _, c in runs({"grid": grid})] == [(4, 0), (4, 1), (8, 0), (8, 1)]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"grids": {}}, "study: 'grids' is not a key of a study"),
        ({"grid": {"rounds": 3}}, "study: grid: must have a list of values for each dotted key"),
        ({"grid": {"rounds": []}}, "study: grid: must have a list of values"),
        ({"grid": {"rounds": [3]}, "exclude": [{"rounds": 4}]}, r"exclude: \{'rounds': 4\} matches no combination"),
        ({"grid": {"rounds": [3]}, "exclude": {"rounds": 3}}, "exclude: must be a list of mappings"),
        ({"grid": {"rounds": [3]}, "include": [{"rounds": 3, "seed": 5}]}, "is in the grid without a seed"),
        ({"grid": {f"a{i}": list(range(10)) for i in range(5)}}, "grid: has 100,000 combinations"),
        ({"grid": {"data": [{}], "data.subset": [1]}}, None),
        ({"grid": {"train": [1], "train.batch_size": [1]}}, "train.batch_size: an earlier key sets 'train' to 1"),
        ({"grid": {"train.batch_siz": [1]}}, "train.batch_siz: unknown key; did you mean 'batch_size'"),
        ({"grid": {"rounds": [3]}, "exclude": [{"rounds": 3}]}, "exclude: leaves no combination"),
    ],
)
def test_mistakes(study, message):
    if message is None:
        assert len(runs(study)) == 1
        return
    with pytest.raises(ConfigError, match=message):
        runs(study)


def test_an_override_of_what_the_grid_varies_is_refused():
    raw = {**TINY, "study": {"grid": {"train.batch_size": [4, 8]}}}
    with pytest.raises(
        ConfigError, match=r"train.batch_size: study\[0\] \(batch_size=4\) sets train.batch_size itself"
    ):
        config_of(raw, ["train.batch_size=2"], "file")
