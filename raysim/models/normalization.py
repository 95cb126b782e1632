"""``data.normalize``: what pretrained weights expect their input to look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysim.config.schema import Config
from raysim.config.sections.data import NormalizeConfig
from raysim.errors import ConfigError


def with_normalization(config: Config, channels: int, weights: Mapping[str, Any]) -> Config:
    """The configuration with ``data.normalize`` resolved for images of so many channels.

    Args:
        weights: what timm knows of the model's pretrained weights (``pretrained_cfg``).

    Raises:
        ConfigError: it does not fit the channels, or weights from a file are of a model whose pretrained weights want
            something else than 0.5, so that only the user can know.
    """
    normalize, model = config.data.normalize, config.model
    if normalize == "auto":
        known = NormalizeConfig()
        if "mean" in weights and "std" in weights:
            known = NormalizeConfig(mean=list(weights["mean"]), std=list(weights["std"]))
        if len(set(known.mean)) == len(set(known.std)) == 1:
            known = NormalizeConfig(mean=known.mean[:1], std=known.std[:1])
        if model.weights is not None and known != NormalizeConfig():
            raise ConfigError(
                f"data.normalize: auto can't know what the weights in {model.weights} were trained on: if they are timm's of "
                f"{model.name}, give {{mean: {known.mean}, std: {known.std}}}; for weights that raysim trained from scratch "
                "give {mean: [0.5], std: [0.5]}"
            )
        normalize = known if model.pretrained else NormalizeConfig()
        if channels == 1 and len(normalize.mean) > 1:  # timm adds up the first layer's weights over the channels
            mean, std = (round(sum(values) / len(values), 6) for values in (normalize.mean, normalize.std))
            normalize = NormalizeConfig(mean=[mean], std=[std])
    if len(normalize.mean) not in (1, channels):
        raise ConfigError(f"data.normalize: {len(normalize.mean)} values for images of {channels} channel(s)")
    data = config.data.model_copy(update={"normalize": normalize})
    return config.model_copy(update={"data": data})
