"""Which parameters exist, which are personal and which train: options of every method, whatever else it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from raysim.own_code import OWN, is_own
from raysim.plugins.registry import PLUGINS, plugin_of
from raysim.search_space import Tuned


class ModelOptions(BaseModel):
    """Keys of an ``algorithm:`` block that choose a plugin, the personal parameters, and what is frozen.

    Class attributes:
        whole_model_kept: why ``personal`` is not used by the method: what its clients keep instead. Empty if it is used.
        needs_body: the method trains more than the head (and modules of its own).
        shares_nothing: no parameters are shared.
        modules: names of the modules that ``add_modules`` adds to the model.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    whole_model_kept: ClassVar[str] = ""
    needs_body: ClassVar[bool] = False
    shares_nothing: ClassVar[bool] = False
    modules: ClassVar[tuple[str, ...]] = ()

    name: str = ""
    """The name in the configuration: a key of ``raysim.algorithms.ALGORITHMS`` or ``module:Class``."""
    personal: list[str] = []
    """Patterns of the personal parameters, which stay with their client; ``!head`` takes the head out again."""
    plugin: (
        Literal["prefix", "prefix_zero", "prefix_random", "adapter", "prompt", "lora"]
        | Annotated[str, Field(pattern=OWN)]
        | None
    ) = None
    """A plugin in the model. ``prefix``: that of FedPerfix; ``prefix_zero``, ``prefix_random``: one linear layer instead,
    zero or random at the start; ``adapter``: parallel to the MLP; ``prompt``: VPT-deep; ``lora``: on qkv; or your own,
    ``module:name`` of a ``raysim.Plugin``. null: none."""
    mid_dim: Annotated[int | None, Tuned(None, "it decides how much is personal, or sent")] = Field(None, ge=1)
    """prefix, adapter: width of the hidden layer (default 256). lora: its rank (8). prompt: tokens per block (10)."""
    scale: Annotated[
        float | None, Tuned([0.1, 0.5, 1.0, 1.5, 2.0, 4.0], "the values of yaml/fedperfix/ablation_scale.yaml")
    ] = None
    """Factor on the plugin's output: default 1.5, lora 1.0; prompts have none."""
    plugin_depth: Annotated[int | None, Tuned(None, "it decides how much is personal, or sent")] = Field(None, ge=1)
    """How many blocks get the plugin, counted from the last. null: all."""
    freeze_backbone: bool = False
    """Train the plugin and the head only (and modules that the method adds); the rest keeps its initial (pretrained) values
    and is never sent."""

    @model_validator(mode="before")
    @classmethod
    def _plugin_defaults(cls, raw: Any) -> Any:
        name = raw.get("plugin", cls.model_fields["plugin"].default) if isinstance(raw, Mapping) else None
        plugin = PLUGINS.get(name) if isinstance(name, str) else None
        if isinstance(name, str) and is_own(name):
            plugin = plugin_of(name)
        if plugin is None:
            return raw  # the field's own check says what is allowed
        filled = {"mid_dim": plugin.mid_dim, "scale": plugin.scale}
        return {**raw, **{key: value for key, value in filled.items() if raw.get(key) is None}}

    @model_validator(mode="after")
    def _model_keys_fit(self) -> ModelOptions:
        for key in ("mid_dim", "scale", "plugin_depth"):
            if getattr(self, key) is None:
                continue
            if self.plugin is None:
                raise ValueError(f"{key!r} is about a plugin, and there is none; set 'plugin', or leave {key!r} out")
            if key != "plugin_depth" and getattr(plugin_of(self.plugin), key) is None:
                raise ValueError(f"{key!r} is not used by the plugin {self.plugin!r}")
        if self.needs_body and self.freeze_backbone and self.plugin is None:
            raise ValueError(
                "'freeze_backbone' without a plugin leaves the head alone, and this method trains the body, too"
            )
        if self.whole_model_kept and self.personal:
            raise ValueError(f"'personal' is not used by this method: {self.whole_model_kept}")
        return self

    def add_plugin(self, model: nn.Module) -> None:
        """Put the plugin into a model, in place."""
        if self.plugin is not None:
            plugin_of(self.plugin).add(model, self.mid_dim, self.scale, self.plugin_depth)

    def add_modules(self, model: nn.Module) -> None:
        """Give a model the modules that the method has beside it, in place: ``model.gate = nn.Linear(...)``.

        Their parameters are entries of ``theta`` like any other. Called once per process, after the model has its initial
        (pretrained) values, with torch's generator seeded. ``modules`` lists their names.
        """

    def personal_patterns(self) -> list[str]:
        """Patterns of the parameters that stay with their client; see ``raysim.functional.parameters.matches``."""
        return self.personal

    def trainable_patterns(self) -> list[str]:
        """Patterns of the parameters that train. The others are frozen: not in ``theta``, never sent or kept."""
        if not self.freeze_backbone:
            return ["*"]
        plugin = [plugin_of(self.plugin).component] if self.plugin is not None else []
        return [*plugin, "head", *self.modules]
