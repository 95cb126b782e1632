"""The keys under ``resources:``, ``checkpoint:``, ``tracking:`` and ``callbacks:``, most of which change no result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raysim.config.sections.section import Auto, Options, Positive, Section
from raysim.own_code import OWN


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
    server_memory: float = Field(4.0, gt=0)
    """GiB that the driver may take for what each client of a round sends for itself, and what the server keeps of it, of
    methods whose server knows its clients (FedAMP, pFedHN, …). Uploads are once more in the actors, and in the object store
    while they are handed over."""
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


def with_options(value: Any) -> Any:
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
