"""Federated algorithms by name. A new one is a file here and a line in ``ALGORITHMS``; a user's own is ``module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from algorithms.apfl import APFL
from algorithms.base import FederatedAlgorithm, Upload
from algorithms.centralized import Centralized
from algorithms.ditto import Ditto
from algorithms.fedala import FedALA
from algorithms.fedas import FedAS
from algorithms.fedavg import FedAvg
from algorithms.fedavg_ft import FedAvgFT
from algorithms.fedavgm import FedAvgM
from algorithms.fedbabu import FedBABU
from algorithms.fedbn import FedBN
from algorithms.fedcp import FedCP
from algorithms.feddbe import FedDBE
from algorithms.feddyn import FedDyn
from algorithms.fednova import FedNova
from algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from algorithms.fedper import FedPer
from algorithms.fedperfix import FedPerfix
from algorithms.fedphp import FedPHP
from algorithms.fedproto import FedProto
from algorithms.fedprox import FedProx
from algorithms.fedrep import FedRep
from algorithms.fedrod import FedRoD
from algorithms.gpfl import GPFL
from algorithms.knnper import KNNPer
from algorithms.lgfedavg import LGFedAvg
from algorithms.local import Local
from algorithms.moon import MOON
from algorithms.perfedavg import PerFedAvg
from algorithms.pfedme import PFedMe
from algorithms.scaffold import Scaffold
from algorithms.vanilla import Vanilla
from raysim.errors import ConfigError

__all__ = ["ALGORITHMS", "FederatedAlgorithm", "Upload", "algorithm_class"]

ALGORITHMS: dict[str, type[FederatedAlgorithm]] = {
    "local": Local,
    "centralized": Centralized,
    "fedavg": FedAvg,
    "fedbn": FedBN,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbabu": FedBABU,
    "perfedavg": PerFedAvg,
    "apfl": APFL,
    "vanilla": Vanilla,
    "fedperfix": FedPerfix,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "moon": MOON,
    "ditto": Ditto,
    "pfedme": PFedMe,
    "lgfedavg": LGFedAvg,
    "fedala": FedALA,
    "fedrod": FedRoD,
    "fedphp": FedPHP,
    "fedproto": FedProto,
    "feddbe": FedDBE,
    "gpfl": GPFL,
    "fedcp": FedCP,
    "fedas": FedAS,
    "knnper": KNNPer,
    "fedavg_ft": FedAvgFT,
}


def algorithm_class(block: Mapping[str, Any]) -> type[FederatedAlgorithm]:
    """The class that the ``name`` of an ``algorithm:`` block asks for.

    Raises:
        ConfigError: no such name, or ``module:Class`` that can't be imported or is no ``FederatedAlgorithm``.
    """
    name = block.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"algorithm.name: {name!r} is not a name. Choose one of: {', '.join(ALGORITHMS)}")
    if ":" in name:
        return _imported(name)
    if name not in ALGORITHMS:
        close = get_close_matches(name.lower(), ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"algorithm.name: there is no algorithm {name!r}; {hint}Choose one of: {', '.join(ALGORITHMS)}, "
            "or module:Class for your own"
        )
    return ALGORITHMS[name]


def _imported(name: str) -> type[FederatedAlgorithm]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found, but not what it imports: their traceback says more
        raise ConfigError(
            f"algorithm.name: there is no module {module_name!r} for {name!r}, neither beside the YAML file nor in the "
            "folder in which the command is given"
        ) from error
    except (TypeError, ValueError) as error:
        if module_name and not module_name.startswith("."):
            raise
        raise ConfigError(f"algorithm.name: {name!r} should be my_module:MyMethod") from error
    found = getattr(module, class_name, None)
    if found is None:
        where = getattr(module, "__file__", "built in")
        raise ConfigError(f"algorithm.name: the module {module_name!r} ({where}) has no class {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, FederatedAlgorithm)):
        raise ConfigError(f"algorithm.name: {name!r} is no subclass of algorithms.FederatedAlgorithm")
    return found
