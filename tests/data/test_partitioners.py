import numpy as np
import pytest

from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset
from raysim.data.partition_file import save_partition
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(name="digits", rotated_domains=True), 8)


def divide(dataset, seed=0, num_clients=10, test_fraction=0.25, validation_fraction=0.0, **partition):
    keys = {"name": "digits", "num_clients": num_clients, "test_fraction": test_fraction, "partition": partition}
    keys["validation_fraction"] = validation_fraction
    return make_partition(DataConfig.model_validate(keys), dataset, seed)


ALL = [
    {"name": "iid"},
    {"name": "dirichlet", "alpha": 0.5, "min_samples": 20},
    {"name": "pathological", "classes_per_client": 3},
    {"name": "by_domain", "alpha": 1.0, "min_samples": 20},
    {"name": "dirichlet_per_client", "alpha": 3.0},
    {"name": "shards", "shards_per_client": 2},
    {"name": "quantity", "alpha": 1.0},
]


@pytest.mark.parametrize("keys", ALL, ids=lambda k: k["name"])
def test_every_sample_belongs_to_one_client_and_the_seed_decides(digits, keys):
    first, again, other = divide(digits, **keys), divide(digits, **keys), divide(digits, seed=1, **keys)
    assert sorted(first.indices.tolist()) == list(range(1797))
    assert first.offsets[-1] == 1797
    assert np.array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)
    assert (first.num_train >= 1).all()
    sizes = np.diff(first.offsets)
    assert np.array_equal(first.num_test, np.ceil(0.25 * sizes))
    for client in (0, 9):
        assert len(first.train(client)) == first.num_train[client]
        assert len(first.train(client)) + len(first.test(client)) == sizes[client]


@pytest.mark.parametrize("keys", ALL, ids=lambda k: k["name"])
def test_a_validation_split_is_drawn_from_the_training_samples_alone(digits, keys):
    plain, partition = divide(digits, **keys), divide(digits, validation_fraction=0.3, **keys)
    assert np.array_equal(partition.num_validation, np.ceil(0.3 * plain.num_train))
    assert np.array_equal(partition.offsets, plain.offsets)
    for client in range(10):
        assert partition.test(client).tolist() == plain.test(client).tolist()
        train, validation = partition.train(client).tolist(), partition.validations(np.array([client])).tolist()
        before = plain.train(client).tolist()
        assert sorted(train + validation) == sorted(before)
        assert [s for s in before if s in set(train)] == train  # in the order in which they were
    again, other = (
        divide(digits, validation_fraction=0.3, **keys),
        divide(digits, seed=1, validation_fraction=0.3, **keys),
    )
    assert np.array_equal(partition.indices, again.indices)
    assert not np.array_equal(partition.validations(np.array([0])), other.validations(np.array([0])))


def test_every_training_sample_has_the_same_chance_to_be_validated(toy):
    times = np.zeros(8)
    for seed in range(400):
        found = divide(toy, seed=seed, num_clients=2, name="iid", validation_fraction=0.5)
        times[found.validations(np.arange(2))] += 1
    assert abs(times / 400 - 4 / 8).max() < 0.1  # of 4 samples one is tested, and two of the other three are validated


def test_a_validation_split_leaves_training_samples(digits):
    with pytest.raises(
        ConfigError, match=r"data\.validation_fraction: client \d has \d+ training samples and keeps none"
    ):
        divide(digits, name="iid", validation_fraction=0.9999)
    small = DataConfig(name="digits", num_clients=800, validation_fraction=0.01, partition={"name": "iid"})
    with pytest.raises(ConfigError, match=r"has 1 training samples and keeps none of them .* \(\d+ such clients\)"):
        make_partition(small, digits, 0)


def test_a_tiny_test_fraction_still_leaves_a_test_sample(digits):
    assert (divide(digits, name="iid", test_fraction=1e-12).num_test == 1).all()


def test_iid_is_even(digits):
    assert set(np.diff(divide(digits, name="iid").offsets).tolist()) == {179, 180}


def test_dirichlet_holds_its_minimum_and_its_bound(digits):
    partition = divide(digits, name="dirichlet", alpha=0.1, min_samples=60)
    counts = partition.class_counts(digits.labels, 10)
    assert counts.sum(axis=1).min() >= 60
    # A client that reaches n / N gets no more classes, so it holds at most n / N and one whole class.
    assert counts.sum(axis=1).max() <= 179.7 + np.bincount(digits.labels).max()
    assert np.array_equal(counts.sum(axis=0), np.bincount(digits.labels))


def test_smaller_alpha_is_more_skewed(digits):
    def classes_held(alpha):
        counts = divide(digits, name="dirichlet", alpha=alpha, min_samples=2).class_counts(digits.labels, 10)
        return (counts > 0).sum(axis=1).mean()

    assert classes_held(0.1) < classes_held(1.0) < classes_held(100.0) == 10


def test_an_impossible_dirichlet_says_what_would_work(digits):
    with pytest.raises(ConfigError, match=r"10 clients with at least 300 samples .* at most 179 is possible"):
        divide(digits, name="dirichlet", alpha=0.5, min_samples=300)
    with pytest.raises(ConfigError, match=r"in 200 draws.*min_samples=(\d+) works.*alpha=(\S+) works") as caught:
        divide(digits, name="dirichlet", alpha=0.05, min_samples=150)
    advice = str(caught.value)
    least = int(advice.split("min_samples=")[1].split()[0])
    divide(digits, name="dirichlet", alpha=0.05, min_samples=least)


def test_a_tiny_alpha_does_not_divide_by_zero(digits):
    partition = divide(digits, name="dirichlet", alpha=1e-4, min_samples=2, num_clients=4)
    assert np.diff(partition.offsets).min() >= 2


def test_pathological_gives_each_client_k_classes_used_evenly(digits):
    counts = divide(digits, name="pathological", classes_per_client=3).class_counts(digits.labels, 10)
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert ((counts > 0).sum(axis=0) == 3).all()


@pytest.mark.parametrize(
    ("clients", "k", "message"),
    [(10, 11, "11 asked, the data set has 10 classes"), (4, 2, "at least 3 is needed"), (800, 2, "each needs two")],
)
def test_impossible_pathological(digits, clients, k, message):
    with pytest.raises(ConfigError, match=message):
        divide(digits, name="pathological", classes_per_client=k, num_clients=clients)


def test_dirichlet_per_client_is_even_in_size_and_skewed_by_alpha(digits):
    few, many = (
        divide(digits, name="dirichlet_per_client", alpha=alpha).class_counts(digits.labels, 10) for alpha in (1.0, 1e6)
    )
    for counts in (few, many):
        assert set(counts.sum(axis=1).tolist()) == {179, 180}
    assert few.max(axis=1).min() > 40  # every client has a class of its own liking,
    assert many[:-1].max() < 35  # or none: about 18 of each


def test_shards_are_of_one_class_or_two_where_it_ends(digits):
    counts = divide(digits, name="shards", shards_per_client=2).class_counts(digits.labels, 10)
    assert set(counts.sum(axis=1).tolist()) <= {178, 179, 180}
    assert (counts > 0).sum(axis=1).max() <= 4
    with pytest.raises(ConfigError, match="shards_per_client: 10 clients with 200 shards each need 2000 samples"):
        divide(digits, name="shards", shards_per_client=200)


def test_quantity_is_skewed_in_sizes_and_even_in_classes(digits):
    partition = divide(digits, name="quantity", alpha=1.0, min_samples=15)
    counts = partition.class_counts(digits.labels, 10)
    sizes = counts.sum(axis=1)
    assert 15 <= sizes.min() < 60
    assert sizes.max() > 300
    large = counts[sizes > 150] / sizes[sizes > 150, None]
    assert large.max() < 0.17  # a tenth each
    with pytest.raises(
        ConfigError, match=r"each of 200 draws. data.partition.alpha=[\d.]+ works with this min_samples, or"
    ):
        divide(digits, name="quantity", alpha=0.01)
    with pytest.raises(
        ConfigError, match="10 clients with at least 200 samples each need 2000, there are 1797; at most 179"
    ):
        divide(digits, name="quantity", min_samples=200)


def test_natural_makes_a_client_of_each_domain(digits):
    partition = divide(digits, name="natural", num_clients=4)
    assert [set(digits.domains[np.r_[partition.train(c), partition.test(c)]].tolist()) for c in range(4)] == [
        {0},
        {1},
        {2},
        {3},
    ]
    three = divide(digits, name="natural", num_clients=3)
    assert set(np.diff(three.offsets)) <= set(np.bincount(digits.domains))
    assert (
        divide(digits, seed=1, name="natural", num_clients=2).digest
        != divide(digits, name="natural", num_clients=2).digest
    )
    with pytest.raises(ConfigError, match=r"5 clients, but only 4 of 4 domains have data.partition.min_samples=2"):
        divide(digits, name="natural", num_clients=5)
    with pytest.raises(ConfigError, match="'natural' needs a data set with domains"):
        divide(load_dataset(DataConfig(name="digits"), 8), name="natural")


def test_by_domain_gives_every_client_one_domain(digits):
    partition = divide(digits, name="by_domain", alpha=1.0, min_samples=20, num_clients=8)
    domains = partition.client_domains(digits.domains, digits.domain_names).tolist()
    assert domains == [
        "0°",
        "0°",
        "90°",
        "90°",
        "180°",
        "180°",
        "270°",
        "270°",
    ]
    with pytest.raises(ConfigError, match="3 clients can't be divided over 4 domains"):
        divide(digits, name="by_domain", num_clients=3)
    with pytest.raises(ConfigError, match="needs a data set with domains"):
        divide(load_dataset(DataConfig(name="digits"), 8), name="by_domain")


def test_more_clients_than_the_data_allows(digits):
    with pytest.raises(ConfigError, match="899 clients need at least 1798 samples.*at most 898 clients"):
        divide(digits, name="iid", num_clients=899)


def test_a_client_left_without_training_samples(digits):
    with pytest.raises(ConfigError, match="has 3 samples and keeps none to train at a test_fraction of 0.9"):
        divide(digits, name="iid", num_clients=898, test_fraction=0.9)


@pytest.fixture
def toy():
    return Dataset(np.zeros((8, 2, 2, 1), np.uint8), np.array([0, 1] * 4), ("a", "b"))


GIVEN = {"train_0": [0, 1, 2], "test_0": [3], "train_1": [4, 5], "test_1": [6, 7]}


def from_file(tmp_path, dataset, num_clients=2, **changes):
    arrays = {k: np.array(v) for k, v in {**GIVEN, **changes}.items() if v is not None}
    np.savez(tmp_path / "split.npz", **arrays)
    return divide(dataset, num_clients=num_clients, name="file", path=str(tmp_path / "split.npz"))


def test_a_split_from_a_file(tmp_path, toy):
    partition = from_file(tmp_path, toy)
    assert partition.train(0).tolist() == [0, 1, 2]
    assert partition.test(1).tolist() == [6, 7]
    assert partition.class_counts(toy.labels, 2).tolist() == [[2, 2], [2, 2]]


def test_a_split_with_validation_from_a_file_and_back(tmp_path, toy):
    given = {"train_0": [0, 1], "validation_0": [2], "validation_1": [7], "test_1": [6]}
    partition = from_file(tmp_path, toy, **given)
    assert partition.num_validation.tolist() == [1, 1]
    assert [partition.train(c).tolist() for c in (0, 1)] == [[0, 1], [4, 5]]
    assert partition.validations(np.arange(2)).tolist() == [2, 7]
    assert partition.tests(np.arange(2)).tolist() == [3, 6]
    save_partition(partition, tmp_path / "again.npz")
    again = divide(toy, num_clients=2, name="file", path=str(tmp_path / "again.npz"))
    assert again.digest == partition.digest
    with pytest.raises(ConfigError, match=r"data\.validation_fraction: .*split.npz has a validation split of its own"):
        divide(toy, num_clients=2, name="file", path=str(tmp_path / "split.npz"), validation_fraction=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_0": [2], "train_0": [0, 1]}, "has no validation_1"),
        (
            {"validation_0": [2], "validation_1": [5]},
            "client 0 has sample 2 in both its train and its validation split",
        ),
        ({"test_1": None}, "has no test_1, but data.num_clients is 2"),
        ({"train_2": [1]}, r"has 1 arrays of other clients than 0 to 1 \(train_2\)"),
        ({"test_7": [1], "train_x": [1]}, r"has 2 arrays of other clients than 0 to 1 \(test_7, train_x\)"),
        ({"test_1": np.array([], int)}, "client 1 is left without test samples"),
        ({"train_0": [0, 8]}, "train_0 has index 8, but the data set has samples 0 to 7"),
        ({"train_0": [0, -1]}, "train_0 has index -1"),
        ({"train_0": [0, 3]}, "client 0 has sample 3 in both"),
        ({"train_0": [0.5]}, r"train_0 is float64 \(1,\), not integers"),
    ],
)
def test_wrong_split_files(tmp_path, toy, changes, message):
    with pytest.raises(ConfigError, match=f"data.partition.path: .*{message}"):
        from_file(tmp_path, toy, **changes)


def test_missing_and_damaged_split_files(tmp_path, toy):
    with pytest.raises(ConfigError, match="there is no such file"):
        divide(toy, num_clients=2, name="file", path="none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ConfigError, match="is damaged"):
        divide(toy, num_clients=2, name="file", path=str(tmp_path / "bad.npz"))


def test_many_clients_are_three_arrays():
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    dataset = Dataset(np.zeros((200_000, 1, 1, 1), np.uint8), labels, tuple("0123456789"))
    partition = divide(dataset, num_clients=50_000, name="iid")
    assert (partition.num_train == 3).all()
    assert len(partition.test(49_999)) == 1


def test_new_clients_are_drawn_from_all_and_become_the_last(digits):
    config = DataConfig(name="digits", rotated_domains=True, num_clients=9, partition={"name": "by_domain"})
    everyone = make_partition(config.model_copy(update={"num_clients": 12}), digits, 0)
    divided = make_partition(config, digits, 0, new_clients=3)
    assert divided.num_clients == 12
    before = {tuple(everyone.train(i)) + tuple(everyone.test(i)) for i in range(12)}
    assert {tuple(divided.train(i)) + tuple(divided.test(i)) for i in range(12)} == before
    assert len({make_partition(config, digits, seed, new_clients=3).train(11)[0] for seed in range(3)}) == 3
    domains = divided.client_domains(digits.domains, digits.domain_names)
    assert sorted(everyone.client_domains(digits.domains, digits.domain_names)) == sorted(domains)
    plain = make_partition(config, digits, 0, new_clients=0)
    assert plain.num_clients == 9


@pytest.mark.parametrize("name", ["dirichlet", "by_domain"])
def test_a_cap_gives_no_further_class_to_a_client_that_has_its_share(digits, name):
    def largest(cap):
        sizes = [
            np.diff(divide(digits, seed=s, name=name, alpha=0.5, min_samples=2, cap=cap).offsets) for s in range(5)
        ]
        return max(int(size.max()) for size in sizes)

    assert largest(True) < largest(False)
    share, class_size = len(digits.labels) / 10, np.bincount(digits.labels).max()
    assert largest(True) < share + class_size  # the class with which it went over its share, no more


def test_by_domain_has_no_cap_unless_asked():
    assert DataConfig(name="digits", partition={"name": "by_domain"}).partition.cap is False
    assert DataConfig(name="digits", partition={"name": "dirichlet"}).partition.cap is True
    with pytest.raises(ValueError, match="'cap' is not used by the partition 'iid'"):
        DataConfig(name="digits", partition={"name": "iid", "cap": True})
