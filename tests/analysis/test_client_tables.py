import numpy as np
import pytest

from raysim.analysis.client_tables import client_table, partition_table
from raysim.config.sections.data import DataConfig
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


def test_a_clients_columns_say_which_model_they_are_about(digits):
    partition = divide(digits, name="iid", num_clients=4)
    final = {"personalized.clients": np.array([0, 1, 3]), "aggregated.clients": np.array([1, 2, 3])}
    for i, family in enumerate(("personalized", "aggregated")):
        final |= {f"{family}.accuracy": np.array([0.1, 0.2, 0.3]) + i / 2, f"{family}.auc": np.array([0.5, 0.6, 0.7])}
    counts = partition.class_counts(digits.labels, 10)
    table = client_table(final, 16, partition, counts, np.full(4, "x")).set_index("client")
    assert list(table.index) == [0, 1, 2, 3]
    assert table["personalized_accuracy"].isna().tolist() == [False, False, True, False]
    assert table.loc[1, ["personalized_accuracy", "aggregated_accuracy"]].tolist() == [0.2, 0.6]
    assert table["rounds"].tolist() == [16] * 4
    assert table["train_samples"].tolist() == partition.num_train.tolist()
    new = {"clients": np.array([3]), "before": np.array([0.1]), "after": np.array([0.4])}
    table = client_table(new, 16, partition, counts, np.full(4, ""))
    assert table[["client", "before", "after", "rounds"]].values.tolist() == [[3, 0.1, 0.4, 16]]
