import pytest

from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare

from configs import tiny


def test_equal_data_is_loaded_and_divided_once():
    entries = [
        {"name": "a", "seeds": [0, 1]},
        {"name": "b", "algorithm": {"name": "fedavg"}},
        {"name": "c", "data": {"num_clients": 6}},
    ]
    first, other_seed, same, fewer = prepare(tiny(study=entries))
    assert first.dataset is other_seed.dataset is same.dataset is fewer.dataset
    assert first.partition is same.partition
    assert first.partition is not other_seed.partition
    assert fewer.partition.num_clients == 6
    assert (first.layout.num_personal > 0, same.layout.num_personal) == (True, 0)


def test_clients_per_batch_is_resolved():
    (auto,) = prepare(tiny(resources={"clients_per_batch": "auto"}))
    assert auto.config.resources.clients_per_batch == 2


def test_a_problem_of_one_entry_names_the_entry():
    entries = [{"name": "fine"}, {"name": "odd", "algorithm": {"name": "fedperfix", "personal": ["nothing"]}}]
    with pytest.raises(ConfigError, match=r"study entry 'odd · seed 0': algorithm\.personal: the pattern 'nothing'"):
        prepare(tiny(study=entries))


def test_a_model_of_which_nothing_fits_is_found_before_anything_starts():
    with pytest.raises(ConfigError, match="model: "):
        prepare(tiny(model={"kwargs": {"patch_size": 16}}))
