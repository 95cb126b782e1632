"""The keys under ``model:`` and ``train:``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysim.config.sections.section import Options, Positive, Section, allow_only
from raysim.own_code import OWN, is_own, is_own_model


class ModelConfig(Section):
    """A model of timm, or your own."""

    name: str = "vit_tiny_patch16_224"
    """timm's name, ``hf-hub:<name on the hub>``, ``local-dir:<folder>`` with what timm saved there; or your own,
    ``module:function``: called with ``num_classes``, ``in_chans``, ``img_size`` and ``kwargs``, it returns a module."""
    image_size: Positive = 224
    """Side of the square images that the model sees, in pixels; samples are resized to it on the device."""
    pretrained: bool = False
    """Start from timm's pretrained weights (downloaded)."""
    weights: str | None = None
    """Start from a safetensors file in timm's names; position embeddings are resized, another head is replaced."""
    kwargs: Options = {}
    """Arguments of timm's constructor (patch_size, embed_dim, depth, num_heads, drop_rate, ...), or of your function."""

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> ModelConfig:
        if self.pretrained and is_own_model(self.name):
            raise ValueError("'pretrained' weights are timm's; a model of your own loads its own, or takes 'weights'")
        if self.pretrained and self.weights is not None:
            raise ValueError("give 'pretrained: true' or 'weights', not both")
        if taken := sorted({"num_classes", "in_chans", "img_size", "pretrained"} & self.kwargs.keys()):
            raise ValueError(f"kwargs can't set {taken[0]!r}: the data set, image_size and pretrained decide it")
        files = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
        if taken := sorted(files & self.kwargs.keys()):  # timm would read files there, in PyTorch's format, too
            raise ValueError(f"kwargs can't set {taken[0]!r}: they come from 'weights' or 'pretrained'")
        return self


class OptimizerConfig(Section):
    """The clients' optimiser; fresh in every round."""

    name: Literal["sgd", "adam", "adamw"] | Annotated[str, Field(pattern=OWN)] = "sgd"
    """``sgd``, ``adam``, ``adamw``, or your own, ``module:Class``, derived from ``raysim.Optimizer``."""
    lr: float = Field(0.01, gt=0)
    """Learning rate."""
    personal_lr: float | None = Field(None, gt=0)
    """Learning rate of personal parameters, and of a model that clients keep beside the shared one (Ditto, APFL); it
    follows ``train.schedule``, too. null: ``lr``."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """sgd: momentum; 0 is none."""
    nesterov: bool = False
    """sgd: Nesterov's momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """sgd, adam: L2 term in the gradient. adamw: decoupled decay."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale a client's gradient down to this norm if it is larger, taken over all parameters. null: never."""
    options: Options | None = None
    """Your own optimiser: its other fields."""

    @model_validator(mode="after")
    def _keys_of_the_optimizer(self) -> OptimizerConfig:
        if self.options and not is_own(self.name):
            raise ValueError(f"'options' are those of an optimiser of your own, but name is {self.name!r}")
        if self.momentum and self.name in ("adam", "adamw"):
            raise ValueError(f"'momentum' is not used by {self.name!r}; set it to 0")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("'nesterov' is a kind of momentum of 'sgd': set 'momentum', such as 0.9")
        return self


class TrainConfig(Section):
    """Local training."""

    local_epochs: Positive = 1
    """Passes over a client's training samples per round."""
    batch_size: Positive = 32
    """Samples per local step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    """Learning rate over rounds: constant; cosine from ``lr`` towards 0; step: times ``gamma`` after every ``step_rounds``
    rounds; exponential: times ``gamma`` after every round."""
    gamma: float | None = Field(None, gt=0, le=1)
    """step, exponential: the factor."""
    step_rounds: Positive | None = None
    """step: rounds from one factor to the next."""
    warmup_rounds: int = Field(0, ge=0)
    """The first rounds, in which the learning rate rises linearly to ``lr``, with which ``schedule`` begins after them."""

    patience: Positive | None = None
    """End a run early when ``validation/accuracy_mean`` has not been above its best for so many rounds. null: never."""

    @model_validator(mode="after")
    def _keys_of_the_schedule(self) -> TrainConfig:
        needed = {"step": {"gamma", "step_rounds"}, "exponential": {"gamma"}}.get(self.schedule, set())
        allow_only(self, f"schedule {self.schedule!r}", needed, {"gamma", "step_rounds"})
        if missing := sorted(key for key in needed if getattr(self, key) is None):
            raise ValueError(f"schedule {self.schedule!r} needs {missing[0]!r}")
        return self
