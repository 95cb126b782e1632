"""The keys under ``data:``: the samples, and how they are divided among clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raysim.config.sections.section import Auto, Options, Positive, Section, allow_only
from raysim.own_code import OWN, is_own


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
    """file: an npz with index arrays ``train_<i>`` and ``test_<i>`` for every client i, maybe ``validation_<i>``, too."""

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
        allow_only(self, f"the partition {self.name!r}", keys, every)
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
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of each client's other samples that nobody trains on, rounded up: its validation split, on which
    ``validation/...`` is measured, by which a round is chosen and ``raysim tune`` compares trials. 0: there is none, unless
    the partition ``file`` has one."""
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
