"""Federated algorithms by name. A new one is a file here and a line in ``ALGORITHMS``; a user's own is ``module:Class``.

This folder is ``raysim.algorithms``, by the link ``raysim/algorithms``. ``algorithms`` is a second name of the same modules,
which yields to a project's own folder of that name.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from raysim import own_code
from raysim.algorithms.apfl import APFL
from raysim.algorithms.apple import APPLE
from raysim.algorithms.base import FederatedAlgorithm, Upload
from raysim.algorithms.centralized import Centralized
from raysim.algorithms.ditto import Ditto
from raysim.algorithms.fedala import FedALA
from raysim.algorithms.fedamp import FedAMP
from raysim.algorithms.fedas import FedAS
from raysim.algorithms.fedavg import FedAvg
from raysim.algorithms.fedavg_ft import FedAvgFT
from raysim.algorithms.fedavgm import FedAvgM
from raysim.algorithms.fedbabu import FedBABU
from raysim.algorithms.fedbn import FedBN
from raysim.algorithms.fedcp import FedCP
from raysim.algorithms.feddbe import FedDBE
from raysim.algorithms.feddpa import FedDPA
from raysim.algorithms.feddyn import FedDyn
from raysim.algorithms.fedfomo import FedFomo
from raysim.algorithms.fedit import FedIT
from raysim.algorithms.fedkd import FedKD
from raysim.algorithms.fednova import FedNova
from raysim.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from raysim.algorithms.fedpac import FedPAC
from raysim.algorithms.fedper import FedPer
from raysim.algorithms.fedperfix import FedPerfix
from raysim.algorithms.fedphp import FedPHP
from raysim.algorithms.fedproto import FedProto
from raysim.algorithms.fedprox import FedProx
from raysim.algorithms.fedrep import FedRep
from raysim.algorithms.fedrod import FedRoD
from raysim.algorithms.fedrolex import FedRolex
from raysim.algorithms.fedsa_lora import FedSALoRA
from raysim.algorithms.fedtp import FedTP
from raysim.algorithms.ffa_lora import FFALoRA
from raysim.algorithms.flexlora import FlexLoRA
from raysim.algorithms.fml import FML
from raysim.algorithms.gpfl import GPFL
from raysim.algorithms.heterofl import HeteroFL
from raysim.algorithms.hetlora import HetLoRA
from raysim.algorithms.ifca import IFCA
from raysim.algorithms.knnper import KNNPer
from raysim.algorithms.lgfedavg import LGFedAvg
from raysim.algorithms.local import Local
from raysim.algorithms.moon import MOON
from raysim.algorithms.perfedavg import PerFedAvg
from raysim.algorithms.pfedhn import PFedHN
from raysim.algorithms.pfedla import PFedLA
from raysim.algorithms.pfedme import PFedMe
from raysim.algorithms.pfedpt import PFedPT
from raysim.algorithms.scaffold import Scaffold
from raysim.algorithms.vanilla import Vanilla
from raysim.errors import ConfigError

__all__ = ["ALGORITHMS", "FederatedAlgorithm", "Upload", "algorithm_class", "algorithm_name"]

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
    "fedamp": FedAMP,
    "fedfomo": FedFomo,
    "fedpac": FedPAC,
    "apple": APPLE,
    "ifca": IFCA,
    "pfedhn": PFedHN,
    "pfedla": PFedLA,
    "fedtp": FedTP,
    "fml": FML,
    "fedkd": FedKD,
    "fedit": FedIT,
    "ffa_lora": FFALoRA,
    "fedsa_lora": FedSALoRA,
    "feddpa": FedDPA,
    "flexlora": FlexLoRA,
    "hetlora": HetLoRA,
    "pfedpt": PFedPT,
    "heterofl": HeteroFL,
    "fedrolex": FedRolex,
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
        found = own_code.imported(name, "algorithm.name")
        if not (isinstance(found, type) and issubclass(found, FederatedAlgorithm)):
            raise ConfigError(f"algorithm.name: {name!r} is no subclass of raysim.algorithms.FederatedAlgorithm")
        return found
    if name not in ALGORITHMS:
        close = get_close_matches(name.lower(), ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"algorithm.name: there is no algorithm {name!r}; {hint}Choose one of: {', '.join(ALGORITHMS)}, "
            "or module:Class for your own"
        )
    return ALGORITHMS[name]


def algorithm_name(cls: type[FederatedAlgorithm]) -> str:
    """The name of a class in a configuration, by which ``algorithm_class`` finds it.

    Raises:
        ConfigError: it was defined inside a function.
    """
    return next((name for name, known in ALGORITHMS.items() if known is cls), None) or own_code.name_of(cls)


def _yield_name() -> None:
    """Give the name ``algorithms`` to a project's own folder, if there is one anywhere on the path, or else to the modules of
    ``raysim.algorithms``, since no class may exist twice."""
    others = [entry for entry in sys.path if not Path(entry, "raysim", "algorithms").is_dir()]
    if spec := importlib.machinery.PathFinder.find_spec(__name__, others):
        sys.modules[__name__] = importlib.util.module_from_spec(spec)
        if spec.loader is not None:  # a folder without __init__.py has nothing to run
            spec.loader.exec_module(sys.modules[__name__])
        return
    for name in [name for name in sys.modules if f"{name}.".startswith("raysim.algorithms.")]:
        sys.modules[name.removeprefix("raysim.")] = sys.modules[name]


if __name__ == "algorithms":
    _yield_name()
