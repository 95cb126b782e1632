import pytest
from conftest import tiny

from raysim.errors import ConfigError
from raysim.resources import clients_per_batch, same_resources


@pytest.mark.parametrize(
    ("clients", "cohort", "parameters", "expected"),
    [
        (16, 8, 120_000, 2),  # a cohort of eight still makes batches of two
        (16, 3, 120_000, 1),
        (100, 64, 120_000, 8),  # at least eight batches
        (2000, 1000, 120_000, 32),
        (2000, 1000, 20_000_000, 1),  # a large model
    ],
)
def test_auto_clients_per_batch_is_a_function_of_the_configuration(clients, cohort, parameters, expected):
    config = tiny(data={"num_clients": clients}, cohort={"size": cohort}, resources={"clients_per_batch": "auto"})
    assert clients_per_batch(config, parameters, tokens=17) == expected


def test_a_given_size_is_kept():
    assert clients_per_batch(tiny(resources={"clients_per_batch": 5}), 10**9, 200) == 5


def test_the_runs_of_a_study_share_one_pool():
    same_resources([tiny(), tiny(resources={"clients_per_batch": 4})])
    with pytest.raises(ConfigError, match="share one pool"):
        same_resources([tiny(), tiny(resources={"num_actors": 4})])
