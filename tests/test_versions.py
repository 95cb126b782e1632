"""Versions that stand in several files: raysim's own, and those of what it needs."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import raysim

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]


def test_raysims_version_is_the_same_everywhere():
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert raysim.__version__ == PROJECT["version"] == citation[1] == changelog[1]


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_the_constraints_satisfy_the_bounds_and_have_everything(needed):
    lines = (ROOT / "docs" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert needed.specifier.contains(pinned[canonicalize_name(needed.name)])


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.name)
def test_bounds_are_lower_bounds_that_the_page_of_versions_names(needed):
    (bound,) = needed.specifier
    assert bound.operator == ">="  # an upper bound only where a version is known to break something
    row = re.search(
        rf"^\| {re.escape(needed.name)} \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs" / "versions.md").read_text(), re.M
    )
    assert row[1] == bound.version
    assert Version(row[2]) >= Version(row[1])
