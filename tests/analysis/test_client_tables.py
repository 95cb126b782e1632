import pytest

from raysim.analysis.client_tables import partition_table
from raysim.config.schema import DataConfig
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(name="digits", rotated_domains=True), 8)


def divide(dataset, seed=0, num_clients=10, test_fraction=0.25, **partition):
    keys = {"name": "digits", "num_clients": num_clients, "test_fraction": test_fraction, "partition": partition}
    return make_partition(DataConfig.model_validate(keys), dataset, seed)


def test_the_table_has_a_row_per_client_and_one_for_the_rest(digits):
    table = partition_table(divide(digits, name="iid", num_clients=50), digits)
    assert len(table) == 41
    assert table["client"].iloc[-1] == "10 more, mean"
    assert table["classes"].iloc[0] == "10"
