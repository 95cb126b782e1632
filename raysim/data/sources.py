"""Data sets by name: each loader returns a ``Dataset`` of uint8 images as they are stored, never floats.

Well-kept libraries do what they do safely: scikit-learn and Pillow the reading, torchvision and medmnist know where a file is
to be had and its checksum. Archives are read in place and pickles never unpickled. This module brings all into one form.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raysim.data.federated_npz import as_uint8, read_clients
from raysim.data.files import check_memory, local_path, read_npz
from raysim.data.legacy_pickle import read_pickle
from raysim.data.partitions import Partition
from raysim.errors import ConfigError

if TYPE_CHECKING:
    from raysim.config import DataConfig

DEFAULT_ROOT = "~/.cache/raysim"


@dataclass(frozen=True)
class Dataset:
    """A pooled data set of n samples.

    Attributes:
        images: (n, H, W, C) uint8, C is 1 or 3.
        labels: (n,) int64, from 0.
        class_names: one for each class.
        domains: (n,) int64 into ``domain_names``, or None.
        split: the clients' samples, where the data set comes divided.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()
    split: Partition | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of images, labels and domains."""
        sha = hashlib.sha256()
        for array in (self.images, self.labels, self.domains):
            if array is not None:
                sha.update(f"{array.dtype}{array.shape}".encode())
                sha.update(np.ascontiguousarray(array).data)
        return sha.hexdigest()[:16]


def load_dataset(config: DataConfig, image_size: int) -> Dataset:
    """The data set that ``config.name`` asks for, cut to ``config.subset``.

    ``image_size`` is used only for image folders whose images differ in size: those are resized to it.

    Raises:
        ConfigError: no such data set, or its files are missing or damaged.
    """
    check_name(config.name)
    dataset = _LOADERS[config.name](config, image_size) if config.name in _LOADERS else _medmnist(config)
    return _subset(dataset, config.subset) if config.subset is not None else dataset


def check_name(name: str) -> None:
    """Raises ConfigError if there is no data set of this name; suggests the nearest."""
    known = [*_LOADERS, *_medmnist_flags()]
    if name not in known:
        from difflib import get_close_matches

        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"data.name: there is no data set {name!r}; {hint}Known: {', '.join(known)}")


def _subset(dataset: Dataset, size: int) -> Dataset:
    """About ``size`` samples: the same share of every class, evenly spaced, so that no random draw is involved."""
    n = len(dataset.labels)
    if size > n:
        raise ConfigError(f"data.subset: {size} samples asked, the data set has {n}")
    chosen = []
    for label in range(dataset.num_classes):
        of_class = np.flatnonzero(dataset.labels == label)
        keep = max(1, round(size * len(of_class) / n)) if len(of_class) else 0
        chosen.append(of_class[np.linspace(0, len(of_class) - 1, keep).round().astype(int)])
    index = np.sort(np.concatenate(chosen))
    domains = dataset.domains[index] if dataset.domains is not None else None
    return replace(dataset, images=dataset.images[index], labels=dataset.labels[index], domains=domains)


def _digits(config: DataConfig, image_size: int) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    names = tuple(str(d) for d in range(10))
    if not config.rotated_domains:
        return Dataset(images[..., None], labels, names)
    domains = np.empty_like(labels)
    for label in range(10):  # every domain gets a quarter of every class
        of_class = np.flatnonzero(labels == label)
        domains[of_class] = np.arange(len(of_class)) % 4
    rotated = np.stack([np.rot90(image, quarter) for image, quarter in zip(images, domains, strict=True)])
    return Dataset(rotated[..., None], labels, names, domains, ("0°", "90°", "180°", "270°"))


def _npz(config: DataConfig, image_size: int) -> Dataset:
    """A user's own file: ``images`` uint8 (n, H, W) or (n, H, W, C), ``labels`` (n,), optional ``domains`` (n,)."""
    form = "an npz with images (n, H, W[, C]) uint8, labels (n,) and optionally domains (n,)"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'npz' needs the path of {form}")
    path = local_path(config.root, "data.root")
    if not path.is_file():
        raise ConfigError(f"data.root: there is no file {path}; it should be {form}")
    try:
        arrays = read_npz(path, lambda name: name in ("images", "labels", "domains"))
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files (zlib.error, BadZipFile, ...)
        raise ConfigError(f"data.root: {path} is damaged or not an npz of plain arrays: {error}") from error
    if missing := {"images", "labels"} - arrays.keys():
        raise ConfigError(f"data.root: {path} has no array {', '.join(sorted(missing))}; it should be {form}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ConfigError(f"data.root: images of {path} are {images.dtype} {images.shape}, not uint8 (n, H, W[, C])")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] not in (1, 3):
        raise ConfigError(f"data.root: images of {path} have {images.shape[3]} channels, not 1 or 3: {images.shape}")
    if 0 in images.shape:
        raise ConfigError(f"data.root: images of {path} are empty: {images.shape}")
    labels = _integers(labels, len(images), "labels", path)
    names = _class_names(labels, path)
    if "domains" not in arrays:
        return Dataset(images, labels, names)
    raw_domains = arrays["domains"]
    if raw_domains.shape != (len(images),):
        raise ConfigError(f"data.root: domains of {path} have shape {raw_domains.shape}, not ({len(images)},)")
    try:
        domain_names, domains = np.unique(raw_domains, return_inverse=True)
        texts = tuple(str(d) for d in domain_names)
        "".join(texts).encode()
    except Exception as error:  # kinds that have no order; code points that no character has are even a SystemError
        raise ConfigError(f"data.root: domains of {path} are no names or numbers: {error}") from error
    return Dataset(images, labels, names, domains.astype(np.int64), texts)


def _integers(values: NDArray[Any], n: int, what: str, path: Path) -> NDArray[np.int64]:
    """Integer class labels (n,) from 0, or an error that says what they are."""
    if values.shape != (n,) or not np.issubdtype(values.dtype, np.integer):
        raise ConfigError(f"data.root: {what} of {path} are {values.dtype} {values.shape}, not integers ({n},)")
    if n == 0 or int(values.min()) < 0 or int(values.max()) >= 2**31:
        problem = "there are none" if n == 0 else f"they go from {values.min()} to {values.max()}, classes count from 0"
        raise ConfigError(f"data.root: {what} of {path} are out of range: {problem}")
    return values.astype(np.int64)


def _class_names(labels: NDArray[np.int64], path: Path) -> tuple[str, ...]:
    """Numbers as names, if every class has a sample."""
    present = np.unique(labels)
    if (last := int(present[-1])) >= len(present):
        gaps = np.setdiff1d(np.arange(min(last, 10 * len(present))), present)[:5].tolist()
        raise ConfigError(
            f"data.root: labels of {path} go up to {last}, but no sample has {_some(gaps)}: out of range, or not numbered "
            "from 0 without gaps"
        )
    return tuple(str(i) for i in range(last + 1))


def _federated_npz(config: DataConfig, image_size: int) -> Dataset:
    """The clients' files of PFLlib and of the FedPerfix authors' code, with their own split."""
    if config.root is None:
        raise ConfigError(
            "data.root: the data set 'federated_npz' needs the folder with train/<i>.npz and test/<i>.npz"
        )
    root = local_path(config.root, "data.root")
    train, test = read_clients(root, config.num_clients, config.allow_legacy_pickle)
    files = [part for pair in zip(train, test, strict=True) for part in pair]
    for i, (x, y) in enumerate(files):
        if y.ndim != 1 or x.ndim not in (3, 4) or len(x) != len(y) or len(y) == 0:
            where = f"{root / ('test' if i % 2 else 'train') / str(i // 2)}.npz"
            raise ConfigError(f"data.root: {where}: images {x.shape} and labels {y.shape} are no samples of one client")
    labels = np.concatenate([y for _, y in files])
    if not np.array_equal(labels, labels.astype(np.int64)):
        raise ConfigError(f"data.root: labels in {root} are no integers")
    labels = _integers(labels.astype(np.int64), len(labels), "labels", root)
    num_train = np.array([len(y) for _, y in train], np.int64)
    sizes = num_train + np.array([len(y) for _, y in test], np.int64)
    split = Partition(np.arange(len(labels)), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), num_train)
    names = _class_names(labels, root)
    return Dataset(as_uint8([x for x, _ in files], root), labels, names, split=split)


def _some(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _root(config: DataConfig) -> Path:
    """The folder of a data set that is downloaded once."""
    root = local_path(config.root if config.root is not None else DEFAULT_ROOT, "data.root")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data.root: {root} must be a folder for {config.name}: {error}") from error
    return root


def _cifar(config: DataConfig, image_size: int) -> Dataset:
    """CIFAR-10 or CIFAR-100 (downloaded once), training and test images pooled."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    root = _root(config)
    try:
        files = _cifar_files(kind, root)
    except Exception as error:  # urllib, hashing and unpacking each have their own
        raise ConfigError(
            f"data.name: {config.name} is not in {root} and can't be downloaded ({error}). Get {kind.filename} from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and put it into {root}, or set data.root to the folder that has it"
        ) from error
    try:
        content = {name: read_pickle(data) for name, data in files.items()}
        names = tuple(str(name) for name in content.pop(kind.meta["filename"])[kind.meta["key"]])
        images = np.concatenate([part["data"] for part in content.values()])
        labels = np.concatenate([part["labels" if "labels" in part else "fine_labels"] for part in content.values()])
        if images.dtype != np.uint8 or images.shape[1:] != (3072,):
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (n, 3072)")
        if (
            labels.dtype.kind != "i"
            or labels.shape != (len(images),)
            or not set(labels.tolist()) <= set(range(len(names)))
        ):
            raise ValueError(f"labels are {labels.dtype} {labels.shape}, not one of {len(names)} classes of each image")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"data.root: {config.name} in {root} can't be read: {error}") from error
    return Dataset(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels.astype(np.int64), names)


def _cifar_files(kind: Any, root: Path) -> dict[str, bytes]:
    """The pickles of CIFAR by name, from torchvision's folder or out of the archive, each with the checksum it should have.

    torchvision would unpack the archive and unpickle the files. Nothing is unpacked here, and so nothing can be written to
    where an archive likes.
    """
    from torchvision.datasets.utils import download_url

    sums = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    paths = {name: root / kind.base_folder / name for name in sums}
    if all(path.is_file() for path in paths.values()):
        files = {name: path.read_bytes() for name, path in paths.items()}
        if _damaged(files, sums) is None:
            return files
    download_url(kind.url, str(root), kind.filename, kind.tgz_md5)
    files = {}
    with tarfile.open(root / kind.filename, "r:gz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder == kind.base_folder and name in sums and member.isreg():
                check_memory(member.size)
                content = archive.extractfile(member)
                assert content is not None
                files[name] = content.read()
    if (bad := _damaged(files, sums)) is not None:
        raise ValueError(f"{bad} is missing in {root / kind.filename}, or damaged")
    return {name: files[name] for name in sums}


def _damaged(files: dict[str, bytes], sums: dict[str, str]) -> str | None:
    """The first file that is missing or has another MD5 than torchvision lists."""
    return next(
        (n for n in sums if n not in files or hashlib.md5(files[n], usedforsecurity=False).hexdigest() != sums[n]), None
    )


def _medmnist_flags() -> list[str]:
    """Every single-label 2-D set of MedMNIST."""
    from medmnist import INFO

    return [
        flag
        for flag, info in INFO.items()
        if not flag.endswith("3d") and info["task"] in ("multi-class", "binary-class", "ordinal-regression")
    ]


def _medmnist(config: DataConfig) -> Dataset:
    """A MedMNIST set at 28 pixels (downloaded once), all three splits pooled as in the paper."""
    from medmnist import INFO
    from torchvision.datasets.utils import download_url

    info = INFO[config.name]
    root = _root(config)
    path = root / f"{config.name}.npz"
    if not path.exists():
        try:
            download_url(info["url"], str(root), path.name, info["MD5"])
        except Exception as error:  # a download has many ways to fail
            path.unlink(missing_ok=True)  # what came of it
            raise ConfigError(
                f"data.name: {path.name} is not in {root} and can't be downloaded ({error}). Get it from {info['url']} and "
                f"put it there, or set data.root to the folder that has it"
            ) from error
    splits, names = ("train", "val", "test"), tuple(info["label"][str(i)] for i in range(len(info["label"])))
    try:
        arrays = read_npz(path, lambda name: name.endswith(("_images", "_labels")))
        images = np.concatenate([arrays[f"{split}_images"] for split in splits])
        labels = np.concatenate([arrays[f"{split}_labels"].reshape(-1) for split in splits])
    except Exception as error:  # a damaged file has many, too
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"data.root: {path} is damaged: {reason}. Delete it to download it again") from error
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ConfigError(f"data.root: images of {path} are {images.dtype} {images.shape}, not uint8 (n, H, W[, C])")
    labels = _integers(labels, len(images), "labels", path)
    if (last := int(labels.max())) >= len(names):
        raise ConfigError(f"data.root: labels of {path} go up to {last}, and {config.name} has {len(names)} classes")
    return Dataset(images, labels, names)


def _image_folder(config: DataConfig, image_size: int) -> Dataset:
    """``root/<domain>/<class>/*.jpg|png``, the Office-Home layout; every domain must have the same classes."""
    from torchvision.datasets import ImageFolder

    form = "a folder with <domain>/<class>/*.jpg or *.png"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'image_folder' needs {form}")
    root = local_path(config.root, "data.root")
    if not root.is_dir():
        hint = "; unpack the archive first" if root.is_file() else ""
        raise ConfigError(f"data.root: {root} is not {form}{hint}")
    try:
        domain_names = sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        folders = [ImageFolder(str(root / domain)) for domain in domain_names]
    except OSError as error:
        raise ConfigError(f"data.root: {root} is not {form}: {error}") from error
    if not folders:
        raise ConfigError(f"data.root: {root} has no folders; it should be {form}")
    for domain, folder in zip(domain_names, folders, strict=True):
        if folder.classes != folders[0].classes:
            odd = sorted(set(folder.classes) ^ set(folders[0].classes))
            raise ConfigError(
                f"data.root: {root}: domains {domain_names[0]} and {domain} differ in classes: {', '.join(odd)}"
            )
    paths = [Path(path) for folder in folders for path, _ in folder.samples]
    labels = np.array([label for folder in folders for _, label in folder.samples], np.int64)
    domains = np.repeat(np.arange(len(folders)), [len(folder.samples) for folder in folders])
    return Dataset(_read_images(paths, image_size), labels, tuple(folders[0].classes), domains, tuple(domain_names))


def _read_images(paths: list[Path], image_size: int) -> NDArray[np.uint8]:
    """RGB images (n, H, W, 3): in their own size if all have the same, else each resized to the model's."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    def size(path: Path) -> tuple[int, int]:
        try:
            with Image.open(path) as image:
                return image.size
        except Exception as error:  # Pillow's decoders raise many kinds, and an error of its own for bombs
            raise ConfigError(f"data.root: {path} is not a readable image: {error}") from error

    def read(path: Path) -> NDArray[np.uint8]:
        try:
            with Image.open(path) as image:
                if image.mode.startswith("I") or image.mode == "F":
                    raise ConfigError(
                        f"data.root: {path} has more than 8 bits per channel ({image.mode}); convert it first"
                    )
                rgb = image.convert("RGB")
                return np.asarray(rgb if rgb.size == target else rgb.resize(target, Image.Resampling.BICUBIC))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"data.root: {path} is not a readable image: {error}") from error

    with ThreadPoolExecutor() as threads:
        sizes = set(threads.map(size, paths))
        target = sizes.pop() if len(sizes) == 1 else (image_size, image_size)
        try:
            check_memory(len(paths) * target[0] * target[1] * 3)
        except ValueError as error:
            raise ConfigError(
                f"data.root: the {len(paths)} images of {target[0]} x {target[1]} pixels: {error}"
            ) from error
        images = np.empty((len(paths), target[1], target[0], 3), np.uint8)
        for i, image in enumerate(threads.map(read, paths)):
            images[i] = image
    return images


_LOADERS: dict[str, Callable[[DataConfig, int], Dataset]] = {
    "digits": _digits,
    "npz": _npz,
    "federated_npz": _federated_npz,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "image_folder": _image_folder,
}
