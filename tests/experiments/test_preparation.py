import numpy as np
import pytest
from safetensors.torch import save_file

from raysim.algorithms.fedavg import FedAvg
from raysim.errors import ConfigError
from raysim.experiments.preparation import data_warnings, prepare
from raysim.models.build import build_model

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


@pytest.fixture
def digests(tmp_path):
    """The digests of a run on a split and on weights that lie under the same paths each time."""

    def of(shift=0, scale=1.0, **changes):
        split = {}
        for i in range(8):
            samples = (np.arange(10) + 10 * i + shift) % 390
            split |= {f"train_{i}": samples[:7], f"test_{i}": samples[7:]}
        np.savez(tmp_path / "split.npz", **split)
        config = tiny(data={"partition": {"name": "file", "path": str(tmp_path / "split.npz")}}, **changes)
        model = build_model(config.model, FedAvg(), 10, 1, 0)
        save_file({name: scale * value for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
        weights = config.model.model_copy(update={"weights": str(tmp_path / "w.safetensors")})
        (run,) = prepare(config.model_copy(update={"model": weights}))
        return run.digests

    return of


def differing(one, other):
    return {key for key in one if one[key] != other[key]}


def test_another_file_under_the_same_path_is_another_run(digests):
    first = digests()
    assert first.keys() == {"data", "partition", "initial", "frozen", "algorithm"}
    assert digests() == first
    assert differing(digests(shift=3), first) == {"partition"}
    assert differing(digests(scale=1.5), first) == {"initial"}
    assert differing(digests(algorithm={"name": "fedavg"}), first) == {"initial", "algorithm"}


def test_another_frozen_backbone_is_another_run(digests):
    lora = {"algorithm": {"name": "fedperfix", "plugin": "lora", "personal": ["head"], "freeze_backbone": True}}
    assert differing(digests(**lora, scale=1.5), digests(**lora)) == {"initial", "frozen"}  # the head trains


def test_a_split_that_leaks_is_reported_once_with_counts(tmp_path):
    def runs(**changes):
        arrays = {"train_0": [0, 1, 2], "test_0": [3], "train_1": [4, 5], "test_1": [6, 7]} | changes
        np.savez(tmp_path / "split.npz", **{name: np.array(values) for name, values in arrays.items()})
        data = {"num_clients": 2, "partition": {"name": "file", "path": str(tmp_path / "split.npz")}}
        return prepare(tiny(data=data, cohort={"size": 2}, study=[{"name": "a", "seeds": [0, 1]}]))

    assert data_warnings(runs()) == []
    assert data_warnings(prepare(tiny())) == []
    where = f"data.partition.path: {tmp_path / 'split.npz'}: "
    assert data_warnings(runs(test_1=[0, 7, 7])) == [
        f"{where}1 of 4 test samples are training samples of another client",
        f"{where}1 samples are in one client more than once: 1 of 9 are repetitions",
    ]
