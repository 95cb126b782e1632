"""``yaml/fedperfix/`` against the constants of the FedPerfix authors' code, by the setting that its README's command selects.

Where raysim differs on purpose, ``docs/paper.md`` says so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from raysim.config.loading import children, load_config

FOLDER = Path(__file__).parents[2] / "yaml/fedperfix"
TRAINING = {
    "model.name": "vit_small_patch16_224",
    "model.image_size": 224,
    "model.pretrained": False,
    "model.weights": None,
    "rounds": 50,
    "train.local_epochs": 10,
    "train.batch_size": 64,
    "train.schedule": "constant",
    "train.optimizer.name": "sgd",
    "train.optimizer.lr": 0.01,
    "train.optimizer.momentum": 0.0,
    "train.optimizer.weight_decay": 0.0,
    "train.optimizer.clip_norm": None,
    "data.augment": "none",
    "data.subset": None,
    "cohort.fraction": 1 / 8,
    "cohort.dropout": 0.0,
    "cohort.stragglers": 0.0,
    "data.normalize": "auto",
    "evaluate.every": 1,
    "evaluate.protocol": "paper",
    "evaluate.clients": "all",
}
DIRICHLET = {
    "data.num_clients": 64,
    "data.test_fraction": 0.25,
    "data.partition.name": "dirichlet",
    "data.partition.alpha": 0.5,
    "data.partition.min_samples": 256,  # 64 to test / 0.25
    "data.partition.cap": True,
}
DATA = {
    "cifar100": {"data.name": "cifar100", **DIRICHLET},
    "organamnist": {"data.name": "organamnist", "data.rgb": True, **DIRICHLET},
    "office_home": {
        "data.name": "image_folder",
        "data.num_clients": 16,
        "data.test_fraction": 0.15,
        "data.partition.name": "by_domain",
        "data.partition.alpha": 1.0,
        "data.partition.min_samples": 134,  # 20 to test / 0.15, rounded up
        "data.partition.cap": False,
    },
}
HEAD, PLUGIN = ["head"], {"algorithm.plugin": "prefix", "algorithm.mid_dim": 256, "algorithm.scale": 1.5}
METHODS = {
    "local": {},
    "centralized": {},
    "fedavg": {},
    "fedbn": {"personal": ["*norm*"]},  # theirs matches parts of names: norm is norm, norm1 and norm2
    "fedper": {"personal": HEAD},  # their "FedRep"
    "fedrep": {"personal": HEAD},
    "fedbabu": {"algorithm.fine_tuning_steps": 1, "algorithm.adapt_lr": None, "algorithm.adapt_momentum": 0.0},
    "perfedavg": {"train.optimizer.lr": 0.001, "algorithm.adapt_lr": None, "algorithm.hessian_free": False},
    "apfl": {"algorithm.alpha": 0.25, "algorithm.mixture": "round"},
    "vanilla": {"personal": ["attn", "head"]},
    "fedperfix": {"personal": ["adapter", "head"], **PLUGIN},
}
LAST_BLOCK = {("cifar100", "fedperfix"): {"personal": ["adapter", "head", "blocks.11"]}}


@pytest.mark.parametrize("name", DATA)
def test_a_data_set_of_the_paper_has_the_authors_constants(name):
    runs = children(load_config(FOLDER / f"{name}.yaml"))
    assert {(run.algorithm.name, run.seed) for _, run in runs} == {(m, seed) for m in METHODS for seed in (0, 1, 2)}
    for _, run in runs:
        method = run.algorithm.name
        flat = run.flat() | {"personal": run.algorithm.personal_patterns()}
        expected = TRAINING | DATA[name] | METHODS[method] | LAST_BLOCK.get((name, method), {})
        assert {key: flat.get(key) for key in expected} == expected, (name, method)


PLUGIN_KEYS = {"algorithm.plugin", "algorithm.mid_dim", "algorithm.scale"}
STUDIED = {  # what an experiment varies; everything else is the paper's
    "layers": {"personal"},
    "resnet50": {"personal", "model.name"},
    "ablation_plugin": {"personal", *PLUGIN_KEYS},
    "ablation_scale": {"algorithm.scale"},
    "ablation_mid_dim": {"algorithm.mid_dim"},
    "ablation_plugin_depth": {"algorithm.plugin_depth"},
    "ablation_clients": {"data.num_clients", "data.partition.min_samples", "evaluate.protocol"},
    "ablation_participation": {"cohort.fraction", "cohort.size", "evaluate.protocol"},
    "ablation_alpha": {"data.partition.alpha", "data.partition.min_samples"},
    "ablation_pretrained": {"model.pretrained", "personal", *PLUGIN_KEYS},
}
OPTIONS = {"algorithm.plugin_depth": None, "algorithm.freeze_backbone": False}


def test_every_other_experiment_is_listed():
    """A version for a laptop has a scale of its own; the data sets have a test of their own."""
    files = {path.stem for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_small")}
    assert files == DATA.keys() | STUDIED.keys()


@pytest.mark.parametrize("path", [FOLDER / f"{name}.yaml" for name in STUDIED], ids=lambda path: path.stem)
def test_another_experiment_changes_only_what_it_studies(path):
    for entry, run in children(load_config(path)):
        flat = run.flat() | {"personal": run.algorithm.personal_patterns()}
        expected = TRAINING | DATA["cifar100"] | METHODS[run.algorithm.name]
        expected |= OPTIONS if run.algorithm.name == "fedperfix" else {}
        differ = {key for key in expected if flat.get(key) != expected[key]}
        differ -= {"algorithm.freeze_backbone"} if path.stem == "ablation_pretrained" else set()
        assert differ <= STUDIED[path.stem], (path.stem, entry, differ - STUDIED[path.stem])


@pytest.mark.parametrize("name", ["ablation_clients", "ablation_participation"])
def test_where_participation_or_clients_vary_the_headline_is_after_aggregation(name):
    """As trained, participation decides how many of the evaluated models have just been tuned to their client."""
    runs = children(load_config(FOLDER / f"{name}.yaml"))
    assert {run.evaluate.protocol for _, run in runs} == {"aggregated"}
