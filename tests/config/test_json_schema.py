import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from raysim.config.json_schema import json_schema

ROOT = Path(__file__).parent.parent.parent


def test_the_schema_in_the_repository_is_that_of_the_code():
    stored = (ROOT / "yaml" / "schema.json").read_text()
    assert stored == json_schema(), "raysim schema > yaml/schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "yaml").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_every_file_of_the_repository(path):
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).is_file()
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema()))


@pytest.mark.parametrize(
    "change",
    [
        {"rouns": 3},
        {"rounds": "three"},
        {"train": {"optimizer": {"name": "adma"}}},
        {"algorithm": {"name": "fedavgg"}},
        {"algorithm": {"name": "fedperfix", "mid_dims": 3}},
        {"resources": {"num_actors": "all"}},
        {"study": {"grids": {}}},
        {"evaluate": {"clients": "some"}},
    ],
    ids=str,
)
def test_the_schema_finds_mistakes(change):
    fine = {"rounds": 3, "algorithm": {"name": "fedavg"}, "study": {"grid": {"seed": [0]}}}
    jsonschema.validate(fine, json.loads(json_schema()))
    jsonschema.validate({"algorithm": {"name": "mine:Method", "mu": 1}}, json.loads(json_schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**fine, **change}, json.loads(json_schema()))
