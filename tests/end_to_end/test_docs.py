"""The code of the documentation, run as it stands there; and the studies that it speaks of."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
import yaml

import raysim
from raysim.algorithms import ALGORITHMS
from raysim.config.loading import children, config_of, load_config
from raysim.experiments.callbacks.making import check_callbacks, make_callbacks
from raysim.experiments.preparation import prepare
from raysim.federation.cohort import sample_cohort
from raysim.federation.metrics.clients import ClientResults
from raysim.own_code import own_function
from raysim.training.engine import make_optimizer
from raysim.training.transforms import augmentation

from configs import TINY

ROOT = Path(__file__).parent.parent.parent


def blocks(page, language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in fenced if kind == language]


@pytest.mark.slow
def test_write_your_own(tmp_path):
    codes, (configuration,), (commands,) = (blocks("docs/write_your_own.md", kind) for kind in ("python", "yaml", ""))
    for code, name in zip(codes, ("ProxHead", "FeatureProx"), strict=True):
        assert len([line for line in code.splitlines() if line.strip()]) <= 25
        assert f"class {name}" in code
    (tmp_path / "my_methods.py").write_text("\n\n".join(codes))
    (tmp_path / "mine.yaml").write_text(configuration)
    outputs = []
    for command in commands.strip().splitlines():
        program, *arguments = command.split()
        assert program == "raysim"
        done = subprocess.run(
            [sys.executable, "-P", "-m", "raysim", *arguments]
            if sys.version_info >= (3, 11)
            else [program, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        outputs.append(done.stdout)
    for output in outputs:
        for name in ("fedper", "mu 0.1", "features"):
            assert re.search(rf"^ +{name} +1 ", output, re.MULTILINE), output
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "page", ["data", "partition", "model", "plugin", "augmentation", "optimizer", "cohort", "metrics", "callbacks"]
)
def test_extend(page, tmp_path, monkeypatch):
    (code, *_), (configuration, *_) = (blocks(f"docs/extend/{page}.md", kind) for kind in ("python", "yaml"))
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= (20 if page == "plugin" else 15)
    (tmp_path / "my_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    given = yaml.safe_load(configuration)
    base = {key: value for key, value in TINY.items() if key not in given}
    config = config_of({"model": {"image_size": 8}, "algorithm": {"name": "fedavg"}, **base, **given}, [], page)
    assert [name for _, name in config.own_names if name.startswith("my_code:")]
    (run,) = prepare(config)
    assert run.partition.num_clients == config.data.num_clients
    assert len(sample_cohort(config, 1)) == config.cohort_size
    probabilities = np.full((16, 10), 0.1, np.float32)
    results = ClientResults(np.array([0, 1]), np.array([4, 6]), np.array([8, 8]), probabilities)
    images = torch.full((4, 8, 8, 1), 200, dtype=torch.uint8)
    if (augment := augmentation(config.data.augment)) is not None:
        assert (augment.apply(images, torch.rand(4, 8)) == 0).float().mean() == 4 / 64
    optimizer = make_optimizer(config.train.optimizer, 0.1)
    theta = torch.ones(3)
    assert not torch.equal(optimizer.step(theta, torch.ones(3), optimizer.init(theta))[0], theta)
    check_callbacks(config)
    assert [callback.patience for _, callback in make_callbacks(config, [])] == ([3] if page == "callbacks" else [])
    for name in config.evaluate.metrics:
        numbers = own_function(name, "evaluate.metrics")(results, np.zeros(16, np.int64))
        assert all(np.isfinite(value) for value in numbers.values())


@pytest.mark.parametrize("path", sorted((ROOT / "yaml").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_is_valid(path):
    config = load_config(path)
    runs = children(config)
    assert len(runs) > 2
    for _, run in runs:
        assert run.algorithm.name
    if path.parent.name == "fedperfix" and not path.stem.endswith("_small"):
        for _, run in runs:
            assert run.model.name in ("vit_small_patch16_224", "resnet50")
            assert run.model.image_size == 224
            assert (run.rounds, run.train.local_epochs, run.train.batch_size) == (50, 10, 64)
            slow = run.algorithm.name == "perfedavg"
            assert run.train.optimizer.model_dump() == {
                "name": "sgd",
                "lr": 0.001 if slow else 0.01,
                "personal_lr": None,
                "momentum": 0.0,
                "nesterov": False,
                "weight_decay": 0.0,
                "clip_norm": None,
                "options": None,
            }
            assert run.resources.num_gpus_per_actor == "auto"  # as many as fit on whatever GPU there is
    if path.stem in ("cifar100", "organamnist", "office_home"):
        assert {entry for entry, _ in runs} == METHODS
        assert all(run.cohort_size == run.data.num_clients // 8 for _, run in runs)
        assert {run.seed for _, run in runs} == {0, 1, 2}


def test_every_command_of_the_docs_is_one_that_raysim_has():
    """Those of ``build.py``'s pages are run by it, and others by other tests; here each is at least understood."""
    from raysim.cli import main

    pages = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
    lines = [(page, line) for page in pages for line in docs_build().commands(page) if line.startswith("raysim ")]
    assert len(lines) > 30
    for page, line in lines:
        _, name, *arguments = shlex.split(line)
        command = main.commands[name]
        try:
            command.make_context(name, [a for a in arguments if "…" not in a], resilient_parsing=False)
        except click.exceptions.Exit:
            pass
        except click.UsageError as error:
            raise AssertionError(f"{page}: {line}: {error.message}") from error


@pytest.mark.slow  # docs/build.py runs them, too
def test_getting_started(cluster, quickstart, tmp_path, monkeypatch, invoke):
    """Its commands as they stand there, on the store that a shorter quickstart filled; ``docs/build.py`` runs the whole.

    In this process, where everything is imported; ``docs/build.py`` starts one for each.
    """
    build, (store, _) = docs_build(), quickstart

    def in_this_process(command, cwd, **options):
        assert (command[:3], cwd) == ([sys.executable, "-m", "raysim"], tmp_path)
        done = invoke(*command[3:])
        return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)

    monkeypatch.setattr(build, "subprocess", SimpleNamespace(run=in_this_process))
    monkeypatch.setattr(build, "PAGES", ("docs/getting_started.md",))
    for item in store.iterdir():
        (tmp_path / item.name).symlink_to(item)
    seen = {"raysim run yaml/quickstart.yaml": "done by the fixture"}
    monkeypatch.setattr(build, "run_id", lambda _: quickstart[1].runs[0].run_id)
    seen |= build.check(tmp_path, seen)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} >= {"comparison.png", "clients.png"}
    assert (tmp_path / "client7.md").is_file()
    assert "optimistic" in seen["raysim compare quickstart --best"]
    assert re.search(r"digit.png: \d [\d.]+ %", seen["raysim predict RUN_ID --client 7 docs/images/digit.png"])


def docs_build():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METHODS = {
    *(
        "local",
        "centralized",
        "fedavg",
        "fedbn",
        "fedper",
        "fedrep",
        "fedbabu",
        "perfedavg",
        "apfl",
        "vanilla",
        "fedperfix",
    )
}


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_page_of_python_has_all_that_is_public():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: raysim\.(\w+)$", page, re.MULTILINE))
    assert listed == set(raysim.__all__) - {"__version__"}
    assert all(hasattr(raysim, name) for name in raysim.__all__)


def test_the_table_of_methods_is_what_they_say_of_themselves():
    rows = {}
    for line in (ROOT / "docs" / "algorithms.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("`"):
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1:])
    for name, cls in ALGORITHMS.items():
        assert "about" in vars(cls), f"{name} has no line of its own"
        about = cls.about
        assert rows[name] == [about.sent, about.kept, about.evaluated, about.cost], name


def test_families_are_listed_by_name(invoke):
    for family in {cls.about.family for cls in ALGORITHMS.values()}:
        listed = invoke("algorithms", "--family", family).output
        for name, cls in ALGORITHMS.items():
            assert (f"{name}  {cls.paper}" in listed) == (cls.about.family == family)
    wrong = invoke("algorithms", "--family", "loar")
    assert wrong.exit_code != 0
    assert "--family loar: there is no such family; choose one of: baseline, " in wrong.output
