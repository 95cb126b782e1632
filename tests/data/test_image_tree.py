"""Folders as people have them: which are read, and what is said of those that are not."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from raysim.config.sections.data import DataConfig
from raysim.data.image_tree import described, read_tree
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError


@pytest.fixture
def make(tmp_path):
    """Writes small images, or empty files of other names, and returns the folder."""

    def write(*names):
        for value, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".png", ".jpg", ".gif", ".jfif", ".jpeg"):
                kind = "JPEG" if path.suffix.lower() == ".jfif" else None
                Image.new("RGB", (4, 4), (value, 0, 0)).save(path, kind)
            else:
                path.write_text("")
        return tmp_path

    return write


def read(root, layout="domain/class"):
    return read_tree(root, layout)


GOOD = ("a/cat/1.png", "a/cat/2.jpg", "a/dog/1.png", "b/cat/1.png", "b/dog/1.png")


def test_domains_and_classes_by_name(make):
    tree = read(make(*GOOD))
    assert (tree.domain_names, tree.class_names) == (("a", "b"), ("cat", "dog"))
    assert [path.name for path in tree.paths] == ["1.png", "2.jpg", "1.png", "1.png", "1.png"]
    assert (tree.labels.tolist(), tree.domains.tolist()) == ([0, 0, 1, 0, 1], [0, 0, 0, 1, 1])
    assert tree.left_out == {}


def test_classes_alone_where_the_layout_says_so(make):
    root = make("cat/1.png", "dog/1.png", "dog/2.png")
    tree = read(root, "class")
    assert (tree.domains, tree.domain_names, tree.class_names) == (None, (), ("cat", "dog"))
    assert tree.labels.tolist() == [0, 1, 1]
    dataset = load_dataset(DataConfig(name="image_folder", root=str(root), layout="class"), 4)
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert dataset.domains is None


@pytest.mark.parametrize(
    ("names", "layout", "message"),
    [
        # Tiny ImageNet: a class has a folder "images" and a list of boxes.
        (
            ("n01/images/1.png", "n01/n01_boxes.txt", "n02/images/1.png"),
            "class",
            r"expected .*/<class>/<image>, but n01/, where images are expected, has folders \(images\)",
        ),
        # PACS/kfold: the root one level too high.
        (
            tuple(f"kfold/{name}" for name in GOOD),
            "domain/class",
            r"but kfold/a/, where images are expected, has folders \(cat, dog\); .* data\.root=.*/kfold\?",
        ),
        (("x/train/cat/1.png", "x/val/cat/1.png"), "domain/class", r"folders train, val in x/ look like splits"),
        (("x/train/1.png", "x/test/1.png"), "domain/class", r"train, .* look like splits|test, train in x/ look like"),
        (
            ("train/cat/1.png", "val/cat/1.png", "test/cat/1.png"),
            "domain/class",
            r"splits, not like domains; .*=.*/train data.layout=class",
        ),
        (("Train/1.png", "Test/1.png"), "class", r"splits, not like classes"),
        (("cat/1.png", "dog/1.png"), "domain/class", r"cat/ has images in it \(1\.png\); with data\.layout: class"),
        (("1.png", "2.png"), "domain/class", r"has images in it \(1\.png, 2\.png\)"),
        (("1.png",), "class", r"has images in it \(1\.png\)"),
        (
            ("a/cat/1.png", "a/cat/more/2.png", "a/dog/1.png", "b/cat/1.png"),
            "domain/class",
            r"a/cat/, .*folders \(more\)",
        ),
        (GOOD, "class", r"a/, where images .* has folders \(cat, dog\); with data\.layout: domain/class"),
        (("a/cat/1.png", "a/dog/1.heic"), "domain/class", r"a/dog/ has no images \(left out in all: 1 \.heic\)"),
        (("a/cat/1.png", "b/x.txt"), "domain/class", r"b/ has no folders \(left out in all: 1 \.txt\)"),
        ((".hidden/cat/1.png",), "domain/class", r"has no folders"),
        (
            ("a/caf\u00e9/1.png", "a/dog/1.png", "b/cafe\u0301/1.png", "b/dog /1.png"),  # they look the same
            "domain/class",
            r"only in a: 'caf\\xe9', dog; only in b: 'cafe\\u0301', 'dog '",
        ),
        (
            ("a/cat/1.png", "a/dog/1.png", "b/cat/1.png", "b/owl/1.png"),
            "domain/class",
            r"a and b differ in classes: only in a: dog; only in b: owl",
        ),
    ],
)
def test_what_lies_elsewhere_is_refused(make, names, layout, message):
    with pytest.raises(ConfigError, match=message):
        read(make(*names), layout)


def test_a_domain_called_test_among_others_is_a_domain(make):
    assert read(make("test/cat/1.png", "street/cat/1.png")).domain_names == ("street", "test")


def test_hidden_and_system_folders_are_no_classes(make):
    extra = (
        "a/.ipynb_checkpoints/cat-checkpoint.png",
        ".ipynb_checkpoints/x.png",
        "a/@eaDir/1.png",
        "__MACOSX/a/cat/._1.png",
        "a/cat/._1.png",
        "lost+found/1.png",
        "a/cat/.ipynb_checkpoints/1-checkpoint.png",
        "a/cat/Thumbs.db",
        ".DS_Store",
    )
    tree = read(make(*GOOD, *extra))
    assert len(tree.paths) == 5
    assert tree.left_out == {}


def test_what_is_not_read_is_counted_and_told(make):
    root = make(*GOOD, "readme.md", "a/list.txt", "a/cat/1.heic", "a/cat/2.HEIC", "a/cat/LICENSE")
    tree = read(root)
    assert tree.left_out == {".heic": 2, ".md": 1, ".txt": 1, "files without suffix": 1}
    assert described(tree.left_out) == "2 .heic, 1 .md, 1 .txt, 1 files without suffix"
    (note,) = load_dataset(DataConfig(name="image_folder", root=str(root)), 4).notes
    assert note == f"data.root: {root}: not read: 2 .heic, 1 .md, 1 .txt, 1 files without suffix"


def test_a_pipe_is_not_waited_for(make):
    root = make(*GOOD)
    os.mkfifo(root / "a" / "cat" / "3.png")
    assert read(root).left_out == {"no files": 1}


def test_gif_and_jfif_are_images(make):
    root = make("a/cat/1.gif", "a/cat/2.JFIF", "a/dog/1.png")
    dataset = load_dataset(DataConfig(name="image_folder", root=str(root)), 4)
    assert dataset.labels.tolist() == [0, 0, 1]
    np.testing.assert_allclose(dataset.images[:, 0, 0, 0], [0, 1, 2], atol=3)


def test_links_neither_lead_out_nor_in_circles(make, tmp_path):
    root = make(*(f"root/{name}" for name in GOOD), "elsewhere/9.png") / "root"
    (root / "a" / "cat" / "up").symlink_to(root)
    (root / "a" / "cat" / "out.png").symlink_to(tmp_path / "elsewhere" / "9.png")
    (root / "a" / "cat" / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "a" / "dog" / "same.png").symlink_to(root / "a" / "dog" / "1.png")
    tree = read(root)
    assert [path.name for path in tree.paths] == ["1.png", "2.jpg", "1.png", "same.png", "1.png", "1.png"]
    assert tree.domain_names == ("a", "b")
    assert tree.left_out == {"links to folders": 1, "links to files elsewhere": 1, "broken links": 1}
    (tmp_path / "link").symlink_to(root)  # the root itself may be one
    assert len(read(tmp_path / "link").paths) == 6
    (root / "c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"c in .* are links to folders; put the folders themselves there"):
        read(root)
    (root / "c").unlink()
    (root / "b" / "owl").symlink_to(root / "a" / "cat")
    with pytest.raises(ConfigError, match=r"owl in b/ are links to folders"):
        read(root)


@pytest.mark.parametrize("folder", [b"a\xff", b"a/c\xfft"])
def test_names_that_are_not_utf8_are_refused(make, folder):
    root = make("a/dog/1.png")
    os.makedirs(os.fsencode(root) + b"/" + folder)
    with pytest.raises(ConfigError, match=re.escape("\\udcff") + ".* is not UTF-8.*rename it"):
        read(root)


@pytest.mark.parametrize("keys", [{"name": "npz"}, {"name": "image_folder"}])
def test_one_class_is_nothing_to_learn(make, keys):
    root = make("a/images/1.png", "b/images/1.png")
    if keys["name"] == "npz":
        root = root / "one.npz"
        np.savez(root, images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros(2, int))
    with pytest.raises(
        ConfigError, match=r"all 2 samples of .* have the same class \((images|0)\): any model would be right"
    ):
        load_dataset(DataConfig(root=str(root), **keys), 4)
