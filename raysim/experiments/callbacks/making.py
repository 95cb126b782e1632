"""From ``callbacks:`` of a configuration, and objects that were given in Python, to the callbacks of a run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from raysim.config.schema import Config
from raysim.config.sections.running import CallbackConfig
from raysim.errors import ConfigError
from raysim.experiments.callbacks.callback import Callback, CallbackError
from raysim.experiments.callbacks.patience import Patience
from raysim.experiments.callbacks.tensorboard import TensorBoard
from raysim.experiments.callbacks.wandb import WandB
from raysim.own_code import checked_options, own_function

SHIPPED: dict[str, type[Callback]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Those that raysim has. Each needs the package of its name, which the extra of that name installs."""


def check_callbacks(config: Config) -> None:
    """Check all that can be known before a callback is made.

    Raises:
        ConfigError: there is no such module or package, an option is wrong, or it is no ``Callback``.
    """
    for of in config.callbacks:
        found = _found(of)
        checked_options(found, of.options, of.name, "callbacks.options", [])
        if inspect.isclass(found) and not issubclass(found, Callback):
            raise ConfigError(f"callbacks: {of.name!r} is not derived from raysim.Callback")


def check_objects(objects: Sequence[Any]) -> None:
    """Check what was given in Python.

    Raises:
        ConfigError: something is no ``Callback``.
    """
    for item in objects:
        if not isinstance(item, Callback):
            what = f"the class {item.__name__}" if inspect.isclass(item) else f"a {type(item).__name__}"
            raise ConfigError(f"callbacks: {what} is no object of a class derived from raysim.Callback")


def make_callbacks(config: Config, objects: Sequence[Callback]) -> list[tuple[str, Callback]]:
    """New callbacks for one run, each with its name for messages.

    Raises:
        ConfigError: one can't be made, or is no ``Callback``.
    """
    made = []
    for of in config.callbacks:
        try:
            made.append((of.name, _found(of)(**of.options)))
        except ConfigError:
            raise
        except BaseException as error:
            raise CallbackError.of(of.name, "when it was made", error) from error
    for name, callback in made:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks: {name!r} gives a {type(callback).__name__}, no raysim.Callback")
    if config.train.patience is not None:
        made.insert(0, ("train.patience", Patience(config.train.patience)))
    return [*made, *((type(item).__qualname__, copy.deepcopy(item)) for item in objects)]


def _found(of: CallbackConfig) -> Callable[..., Any]:
    if of.name not in SHIPPED:
        return own_function(of.name, "callbacks")
    if find_spec(of.name) is None:
        raise ConfigError(
            f"callbacks: {of.name} needs a package that is not installed: pip install 'raysim[{of.name}]'"
        )
    return SHIPPED[of.name]
