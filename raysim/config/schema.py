"""The schema of a YAML file: one class per section, one docstring per key. Loading is in ``loading.py``.

Every key is checked; none is ignored. ``auto`` values are resolved once, before round 0, and written into the run's
``config.yaml``, which ``raysim run`` accepts again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from raysim.algorithms import FederatedAlgorithm, algorithm_class, algorithm_name
from raysim.config.dotted import flatten
from raysim.config.grid import expand
from raysim.own_code import OWN, is_own, is_own_model

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As a file would have them: numpy's numbers become Python's, tuples lists."""

    def number(value: Any) -> Any:
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{type(value).__name__} is nothing that a file can have; give numbers, texts, lists")
        return value.item()

    plain: dict[str, Any] = json.loads(json.dumps(options, default=number))
    return plain


Options = Annotated[dict[str, Any], AfterValidator(_plain)]


class Section(BaseModel):
    """A block of the file: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _allow_only(section: Section, owner: str, allowed: set[str], conditional: set[str]) -> None:
    """Refuse keys that are set although this choice of ``name`` does not use them."""
    for key in sorted(conditional - allowed):
        if getattr(section, key) is not None:
            raise ValueError(f"{key!r} is not used by {owner}, which takes {', '.join(sorted(allowed)) or 'no keys'}")


class NormalizeConfig(Section):
    """``(x / 255 - mean) / std``, one value for all channels or one for each."""

    mean: list[float] = Field([0.5], min_length=1, max_length=3)
    """Of the values of a channel, from 0 to 1."""
    std: list[Annotated[float, Field(gt=0)]] = Field([0.5], min_length=1, max_length=3)
    """Standard deviation of these values."""

    @model_validator(mode="after")
    def _one_each(self) -> NormalizeConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        return self


class PartitionConfig(Section):
    """How samples are divided among clients."""

    name: (
        Literal[
            "iid",
            "dirichlet",
            "dirichlet_per_client",
            "pathological",
            "shards",
            "quantity",
            "by_domain",
            "natural",
            "file",
            "own",
        ]
        | Annotated[str, Field(pattern=OWN)]
    ) = "dirichlet"
    """``dirichlet``: label skew, each class divided over the clients; ``dirichlet_per_client``: each client draws its
    classes, all of equal size; ``pathological``: k classes per client; ``shards``: shards of the samples sorted by class;
    ``quantity``: skew of sizes only; ``by_domain``: clients divided over domains, Dirichlet inside each; ``natural``: each
    domain is a client; ``file``: a split made elsewhere; ``own``: the split of ``federated_npz``. Or your own,
    ``module:function``: called with labels (n,), domains (n,) or None, the number of clients and a generator, it returns the
    indices of each client's samples."""
    options: Options | None = None
    """Your own: more arguments of its function."""
    alpha: float | None = Field(None, gt=0)
    """dirichlet, dirichlet_per_client, quantity, by_domain: concentration; smaller is more skewed. Default 0.5; for
    dirichlet_per_client, where the classes' shares are multiplied by it, 10."""
    min_samples: int | None = Field(None, ge=2)
    """dirichlet, quantity, by_domain: draw again until every client has this many samples. Default 10. natural: domains with
    fewer are no clients. Default 2."""
    cap: bool | None = None
    """dirichlet, by_domain: a client that already holds its equal share of the samples gets none of further classes. Default
    true for dirichlet and false for by_domain, as in the FedPerfix paper's code."""
    classes_per_client: int | None = Field(None, ge=1)
    """pathological: classes that each client has. Default 2."""
    shards_per_client: int | None = Field(None, ge=1)
    """shards: how many each client gets. Default 2."""
    path: str | None = None
    """file: an npz with index arrays ``train_<i>`` and ``test_<i>`` for every client i."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:
        defaults: dict[str, dict[str, Any]] = {
            "dirichlet": {"alpha": 0.5, "min_samples": 10, "cap": True},
            "by_domain": {"alpha": 0.5, "min_samples": 10, "cap": False},
            "pathological": {"classes_per_client": 2},
            "shards": {"shards_per_client": 2},
            "quantity": {"alpha": 0.5, "min_samples": 10},
            "natural": {"min_samples": 2},
            "dirichlet_per_client": {"alpha": 10.0},
        }
        if not isinstance(raw, Mapping):
            return raw
        name = raw.get("name", "dirichlet")
        filled = defaults.get(name, {}) if isinstance(name, str) else {}
        return {**raw, **{k: v for k, v in filled.items() if raw.get(k) is None}}

    @model_validator(mode="after")
    def _keys_fit(self) -> PartitionConfig:
        keys = {
            "dirichlet": {"alpha", "min_samples", "cap"},
            "by_domain": {"alpha", "min_samples", "cap"},
            "pathological": {"classes_per_client"},
            "shards": {"shards_per_client"},
            "quantity": {"alpha", "min_samples"},
            "natural": {"min_samples"},
            "dirichlet_per_client": {"alpha"},
            "file": {"path"},
        }.get(self.name, {"options"} if is_own(self.name) else set())
        every = {"alpha", "min_samples", "cap", "classes_per_client", "shards_per_client", "path", "options"}
        _allow_only(self, f"the partition {self.name!r}", keys, every)
        if self.name == "file" and self.path is None:
            raise ValueError("the partition 'file' needs 'path', an npz with train_<i> and test_<i>")
        return self


class DataConfig(Section):
    """The data set and its split over clients."""

    name: str = "digits"
    """``digits`` (bundled), ``npz``, ``federated_npz``, ``cifar10``, ``cifar100``, ``image_folder``, ``huggingface``, a
    MedMNIST flag (``organamnist``); or your own, ``module:function``: called with these keys, it returns a
    ``raysim.Dataset``."""
    options: Options | None = None
    """Your own data set: more arguments of its function."""
    root: str | None = None
    """npz: the file. huggingface: a name on the hub, or a folder. Others: the folder of the data; null is
    ``~/.cache/raysim``. Downloads go there."""
    layout: Literal["domain/class", "class"] = "domain/class"
    """image_folder: what the folders in ``root`` are: domains with a folder for each class, or the classes."""
    image_column: str | None = None
    """huggingface: the column of images. null: the one that there is."""
    label_column: str | None = None
    """huggingface: the column of classes. null: the one that there is."""
    domain_column: str | None = None
    """huggingface: a column whose values are the samples' domains (``natural``: the clients)."""
    splits: list[str] | None = None
    """huggingface: which of its splits are used, joined. null: all; each client's test samples are drawn by raysim."""
    cache: Literal["auto", "memory", "disk"] = "auto"
    """image_folder, huggingface: where decoded images are. ``disk``: decoded once into a file in ``~/.cache/raysim``
    (RAYSIM_CACHE) that all actors of a node map, for sets larger than memory; ``memory``: decoded at every start, in the
    object store; auto: decoded once, and read into memory up to 2 GB."""
    allow_legacy_pickle: bool = False
    """federated_npz: read its pickled dicts, by a reader that makes arrays, dicts, lists, numbers and strings only."""
    num_clients: Positive = 16
    """N, the number of clients."""
    test_fraction: float = Field(0.25, gt=0, lt=1)
    """Share of each client's samples in its test split, rounded up (not used by the partitions ``file`` and ``own``)."""
    subset: int | None = Field(None, ge=1)
    """Use about this many samples, the same share of every class, evenly spaced through it. null: all."""
    augment: Literal["none", "flip", "crop_flip"] | Annotated[str, Field(pattern=OWN)] = "none"
    """Training images: mirrored at random; and shifted by up to an eighth of their size. Or your own, ``module:function``:
    called on the device with images (n, H, W, C) uint8 and 8 uniform numbers for each (n, 8), it returns such images."""
    normalize: Auto | NormalizeConfig = "auto"
    """How pixels become the model's input: ``{mean: [...], std: [...]}``. auto: with pretrained weights as timm says of them,
    else 0.5 and 0.5, from -1 to 1."""
    rotated_domains: bool = False
    """digits: four domains of equal size, their images rotated by 0, 90, 180 and 270 degrees."""
    rgb: bool = False
    """Give grey images three equal channels, as the FedPerfix paper does with OrganAMNIST."""
    partition: PartitionConfig = PartitionConfig()

    @model_validator(mode="before")
    @classmethod
    def _federated_npz_has_its_own_split(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("name") == "federated_npz":
            return {"partition": {"name": "own"}, **raw}
        return raw

    @model_validator(mode="after")
    def _options_fit_the_source(self) -> DataConfig:
        if (self.name == "federated_npz") != (self.partition.name == "own"):
            raise ValueError(
                "'federated_npz' comes with its split: it takes the partition 'own', and no other data set does"
            )
        if self.name == "federated_npz" and self.subset is not None:
            raise ValueError("'subset' is not used by 'federated_npz', whose clients have their own samples")
        if self.options and not is_own(self.name):
            raise ValueError(f"'options' are those of a data set of your own, but name is {self.name!r}")
        if self.cache != "auto" and self.name not in ("image_folder", "huggingface"):
            raise ValueError(f"'cache' is an option of 'image_folder' and 'huggingface', but name is {self.name!r}")
        if self.layout != "domain/class" and self.name != "image_folder":
            raise ValueError(f"'layout' is an option of 'image_folder', but name is {self.name!r}")
        for key in ("image_column", "label_column", "domain_column", "splits"):
            if getattr(self, key) is not None and self.name != "huggingface":
                raise ValueError(f"{key!r} is an option of 'huggingface', but name is {self.name!r}")
        if self.allow_legacy_pickle and self.name != "federated_npz":
            raise ValueError(f"'allow_legacy_pickle' is an option of 'federated_npz', but name is {self.name!r}")
        if self.rotated_domains and self.name != "digits":
            raise ValueError(f"'rotated_domains' is an option of 'digits', but name is {self.name!r}")
        if self.root is not None and self.name == "digits":
            raise ValueError("'root' is not used by 'digits', which come with scikit-learn")
        return self


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

    name: Literal["sgd", "adamw"] | Annotated[str, Field(pattern=OWN)] = "sgd"
    """``sgd``, ``adamw``, or your own, ``module:Class``, derived from ``raysim.Optimizer``."""
    lr: float = Field(0.01, gt=0)
    """Learning rate."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """sgd: momentum; 0 is none."""
    weight_decay: float = Field(0.0, ge=0)
    """sgd: L2 term in the gradient. adamw: decoupled decay."""
    clip_norm: float | None = Field(None, gt=0)
    """Scale a client's gradient down to this norm if it is larger, taken over all parameters. null: never."""
    options: Options | None = None
    """Your own optimiser: its other fields."""

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> OptimizerConfig:
        if self.options and not is_own(self.name):
            raise ValueError(f"'options' are those of an optimiser of your own, but name is {self.name!r}")
        if self.momentum and self.name == "adamw":
            raise ValueError(f"'momentum' is not used by {self.name!r}; set it to 0")
        return self


class TrainConfig(Section):
    """Local training."""

    local_epochs: Positive = 1
    """Passes over a client's training samples per round."""
    batch_size: Positive = 32
    """Samples per local step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over rounds: constant, or cosine from ``lr`` towards 0."""


class CohortConfig(Section):
    """Which clients train in a round (exactly one of ``fraction``, ``size``, ``schedule``), and how they may fail."""

    fraction: float | None = Field(None, gt=0, le=1)
    """Share of the clients, sampled without replacement, at least one."""
    size: int | None = Field(None, ge=1)
    """Number of clients, sampled without replacement."""
    schedule: list[list[int]] | None = None
    """A list of the client ids of every round."""
    sampling: Literal["uniform"] | Annotated[str, Field(pattern=OWN)] = "uniform"
    """How a cohort is drawn: every client with the same chance; or your own, ``module:function``: called with the round, the
    number of clients, the size of the cohort and a generator, it returns client ids, the same whenever it is called."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Simulated: the chance that a client trains but never reports. Its state changes; the mean is over the others."""
    stragglers: float = Field(0.0, ge=0, le=1)
    """Simulated: the chance that a client is slow in a round: it does a random share of its steps, at least one."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What to do about a client batch that kills its worker more than ``resources.max_retries`` times: stop the run, or go on
    without its clients, counted in ``cohort/dropped``. Such a result is not reproducible."""

    @model_validator(mode="after")
    def _exactly_one(self) -> CohortConfig:
        given = [k for k in ("fraction", "size", "schedule") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of fraction, size, schedule (here: {', '.join(given) or 'none'}); null unsets a key"
            )
        if self.schedule is not None and self.sampling != "uniform":
            raise ValueError("'sampling' is not used by a schedule, which names the clients of every round")
        for round, ids in enumerate(self.schedule or ()):
            if not ids or len(set(ids)) != len(ids) or min(ids) < 0:
                raise ValueError(f"schedule[{round}] is {ids}: it must list at least one client id, each once, from 0")
        return self


class EvaluateConfig(Section):
    """Who is evaluated and when, and which model the headline is about."""

    every: Positive = 1
    """Evaluate once in this many rounds, and in the last round."""
    clients: Literal["all", "cohort"] | Positive = "all"
    """All clients, the round's cohort, or a fixed random sample of this size. The last round evaluates all, for the table of
    clients; its metrics are still about those asked for here."""
    protocol: Literal["paper", "aggregated"] = "paper"
    """The headline of tables and pictures; both are evaluated in any case. ``paper``: as trained (``personalized/...``), a
    client that has just trained with its own parameters before aggregation, any other with the round's incoming shared
    parameters and its personal ones. ``aggregated``: everyone with the shared parameters after the server step and their
    personal ones (``aggregated/...``)."""
    sensitivity: Auto | bool | Positive = "auto"
    """Measure how much the clients' updates disagree, per type of layer (``sensitivity/...``): in every round, in none, or
    once in this many rounds. It doubles what actors send in a round. auto: for up to 10 million shared parameters."""
    metrics: list[Annotated[str, Field(pattern=OWN)]] = []
    """Your own, ``module:function`` each: called with the results of the evaluated clients and the labels of their test
    samples, it returns numbers by name, which are logged as ``personalized/<name>`` and ``aggregated/<name>``."""
    new_clients: int = Field(0, ge=0)
    """Clients beyond ``data.num_clients`` that never take part. After the last round they get the final shared parameters,
    train ``adapt_epochs`` on their own training split, and are evaluated before and after: ``new_clients/...``."""
    adapt_epochs: Positive = 1
    """new_clients: local epochs of their adaptation, as the algorithm trains its clients, at the full learning rate."""


class ResourcesConfig(Section):
    """Where it runs. No key changes a result, except ``device``, ``clients_per_batch``, ``batches_per_round``, ``precision``
    and ``compile``."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where Ray sees a GPU."""
    num_actors: Auto | Positive = "auto"
    """Client actors (worker processes). auto: one per CPU core, or as many as the GPUs have room for; no more than client
    batches in a round."""
    num_cpus_per_actor: float = Field(1, gt=0)
    """Ray's logical CPUs per actor. An actor always computes with one thread, whatever this number is."""
    num_gpus_per_actor: Auto | Annotated[float, Field(ge=0)] = "auto"
    """Share of a GPU per actor, such as 0.25. auto: the GPUs divided among the actors, up to four on each by the memory of a
    trial step."""
    clients_per_batch: Auto | Positive = "auto"
    """Clients that an actor trains together as one vectorised computation; 1 trains them one by one. auto: from model and
    batch size on a CPU, from the memory of a trial step on a GPU; so small that ``batches_per_round`` remain."""
    batches_per_round: Auto | Positive = "auto"
    """How many client batches ``clients_per_batch: auto`` leaves in a round, if the cohort is large enough. auto: 8 on a CPU,
    whatever the machine, so that results are the same everywhere; on GPUs one for each actor, at least 8."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Precision of matrix products, by autocast; parameters, gradients, loss and aggregation stay float32. bfloat16 is
    faster where the CPU or GPU computes in it; tf32, on GPUs, rounds what is multiplied to 10 bits of mantissa."""
    compile: bool = False
    """Run forward and backward through ``torch.compile``: takes a minute at the start of every actor, and needs a C++
    compiler (CPU) or Triton (GPU)."""
    client_timeout: Auto | Annotated[float, Field(gt=0)] = "auto"
    """Seconds after which a client batch counts as hung and its actor is replaced. auto: twenty times what was measured
    for its number of samples, at least a minute."""
    max_retries: int = Field(3, ge=0)
    """How often a client batch that killed its actor is tried again."""
    concurrent_runs: Auto | Positive = "auto"
    """How many runs of a study run at a time, each with its own actors. auto: as many as fit with all the actors
    that a run can use, unless ``num_actors`` is given."""
    allow_mixed: bool = False
    """Use nodes with different CPUs or GPUs in one run; bits then depend on which client ran where."""


class CheckpointConfig(Section):
    """What a run continues from after a node, the driver or the whole machine is lost. No key changes a result."""

    dir: str | None = None
    """A folder or any fsspec URI (``s3://bucket/runs``); null: ``checkpoints`` beside the MLflow store."""
    every: Positive | None = 5
    """Rounds from one checkpoint to the next. null: none, and nothing can be resumed."""
    keep: Positive = 2
    """How many checkpoints of a run are kept; a finished run keeps its last one."""


class CallbackConfig(Section):
    """What is to be done when something happens to a run."""

    name: str = Field(pattern=rf"^(tensorboard|wandb)$|{OWN}")
    """``tensorboard``, ``wandb``, or a ``raysim.Callback`` of your own, ``module:Class``."""
    options: Options = {}
    """Arguments of the class."""


def _with_options(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking URI; null: ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the directory of the command."""
    experiment: str | None = None
    """Experiment; null: the ``name`` of the file."""
    models: Literal["auto", "all", "shared", "none"] = "auto"
    """Trained models among the artifacts: the shared parameters and the state of every client. auto: all, or the shared ones
    only if the states are more than 250 MB."""


def _algorithm(value: Any) -> Any:
    """From a mapping to the algorithm that its ``name`` asks for; errors are reported under ``algorithm.``.

    A method that was made in Python gets its name.
    """
    if isinstance(value, FederatedAlgorithm):
        return value.model_copy(update={"name": algorithm_name(type(value))})
    if not isinstance(value, Mapping):
        return value
    cls = algorithm_class(value)
    try:
        return cls.model_validate(dict(value))
    except ValidationError as error:
        raise AlgorithmBlockError(cls, error) from error


def _dumped(value: Any) -> Any:
    """The entries of a study with the methods that were made in Python as mappings."""
    if isinstance(value, FederatedAlgorithm):
        return _algorithm(value).model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _dumped(inner) for key, inner in value.items()}
    return [_dumped(inner) for inner in value] if isinstance(value, list) else value


class AlgorithmBlockError(ValueError):
    """Carries the validation error of the algorithm's own class to the loader."""

    def __init__(self, cls: type[FederatedAlgorithm], error: ValidationError) -> None:
        super().__init__(str(error))
        self.cls, self.error = cls, error


class Config(Section):
    """A run, or a study of several."""

    name: str = Field("raysim", min_length=1)
    """Name of the run or study; the MLflow experiment unless ``tracking.experiment`` is given."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random draw follows from it."""
    rounds: Positive = 20
    """Federated rounds."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    algorithm: Annotated[SerializeAsAny[FederatedAlgorithm], BeforeValidator(_algorithm)]
    """``name``, and that algorithm's own keys."""
    train: TrainConfig = TrainConfig()
    cohort: CohortConfig = CohortConfig(fraction=1.0)
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: ResourcesConfig = ResourcesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    callbacks: list[Annotated[CallbackConfig, BeforeValidator(_with_options)]] = []
    """What is told of rounds, checkpoints and the end of a run: names, or ``name`` with ``options`` each. It may end a run
    early; no other result depends on it."""
    study: list[dict[str, Any]] | None = None
    """Several runs of this file, compared: each entry has a ``name``, maybe ``seeds``, and the keys that it changes. Its
    ``algorithm:`` block replaces the file's whole block. Or ``grid``, lists of values by dotted keys (``seed`` among them),
    of which every combination is a run; with ``exclude``, combinations that are left out, and ``include``, more of them."""

    @model_validator(mode="before")
    @classmethod
    def _grid_to_entries(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("study") is not None:
            raw = {**raw, "study": _dumped(raw["study"])}
        if isinstance(raw, Mapping) and isinstance(raw.get("study"), Mapping):
            try:
                return {**raw, "study": expand(raw["study"], raw.get("algorithm"))}
            except ValueError as error:
                raise ValueError(f"study: {error}") from error
        return raw

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        clients, cohort = self.data.num_clients, self.cohort
        if self.algorithm.pooled and (cohort.dropout or cohort.stragglers):
            raise ValueError(
                f"cohort: dropout and stragglers are not used by {self.algorithm.name!r}, which has no clients"
            )
        optimizer, allowed = self.train.optimizer.name, self.algorithm.local_optimizers
        if optimizer not in allowed and not (is_own(optimizer) and "adamw" in allowed):
            raise ValueError(
                f"train.optimizer.name: {self.algorithm.name!r} needs {' or '.join(allowed)}, not {optimizer}: it computes "
                "with the sum of a client's gradients, which it gets from how far the client went"
            )
        if self.resources.compile and self.algorithm.has_own("losses"):
            raise ValueError(
                f"resources.compile: only cross entropy is compiled; {self.algorithm.name!r} has a loss of its own"
            )
        if cohort.size is not None and cohort.size > clients:
            raise ValueError(f"cohort.size is {cohort.size}, but data.num_clients is {clients}")
        if cohort.schedule is not None:
            if len(cohort.schedule) < self.rounds:
                raise ValueError(f"cohort.schedule has {len(cohort.schedule)} rounds, but rounds is {self.rounds}")
            if (largest := max(max(ids) for ids in cohort.schedule)) >= clients:
                raise ValueError(f"cohort.schedule has client {largest}, but ids go from 0 to {clients - 1}")
        if isinstance(self.evaluate.clients, int) and self.evaluate.clients > clients:
            raise ValueError(f"evaluate.clients is {self.evaluate.clients}, but data.num_clients is {clients}")
        return self

    @property
    def cohort_size(self) -> int:
        """The largest cohort of a round."""
        if self.cohort.schedule is not None:
            return max(len(ids) for ids in self.cohort.schedule)
        if self.cohort.size is not None:
            return self.cohort.size
        assert self.cohort.fraction is not None
        return max(1, round(self.cohort.fraction * self.data.num_clients))

    @property
    def own_names(self) -> list[tuple[str, str]]:
        """What is a user's own: dotted key and ``module:name`` of each."""
        named = [
            ("algorithm.name", self.algorithm.name),
            ("algorithm.plugin", self.algorithm.plugin or ""),
            ("data.name", self.data.name),
            ("data.partition.name", self.data.partition.name),
            ("data.augment", self.data.augment),
            ("model.name", self.model.name),
            ("train.optimizer.name", self.train.optimizer.name),
            ("cohort.sampling", self.cohort.sampling),
            *(("evaluate.metrics", name) for name in self.evaluate.metrics),
            *(("callbacks", callback.name) for callback in self.callbacks),
        ]
        return [(key, name) for key, name in named if (is_own_model if key == "model.name" else is_own)(name)]

    def flat(self) -> dict[str, Any]:
        """Dotted path to value, without the study: what MLflow shows as parameters."""
        return dict(flatten(self.model_dump(mode="json", exclude={"study"})))
