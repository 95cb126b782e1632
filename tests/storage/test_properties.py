"""Whatever the bytes of a checkpoint, a journal or a study: an error that names the file, or what was written."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysim.errors import CheckpointError, ConfigError
from raysim.storage.checkpoint import Manifest, canonical, load, manifest_name, newest
from raysim.storage.checkpoint import _sha256 as sha256
from raysim.storage.folder import Folder
from raysim.storage.study_folder import StudyFolder
from raysim.tracking.round_journal import read_journal

from checkpointed import CheckpointedRun

pytestmark = pytest.mark.filterwarnings("ignore")
relaxed = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = Folder(str(tmp_path_factory.mktemp("run")))
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    return folder


def reads_or_names(folder):
    """Loading gives all of what was written, or an error of the file."""
    try:
        checkpoint = load(folder, 1)
    except CheckpointError:
        assert newest(folder)[0] is None
        return
    read = [clients for clients, _ in checkpoint.states()]
    assert sum(map(len, read)) == len(checkpoint.of_clients.clients)
    checkpoint.records.accuracy_tables("all", checkpoint.manifest.num_clients)


@relaxed
@given(data=st.data())
def test_flipped_cut_and_foreign_bytes(written, data):
    name = data.draw(st.sampled_from(list(written.files())))
    intact = written.read(name)
    how = data.draw(st.sampled_from(["bytes", "flip", "cut", "insert"]))
    at = data.draw(st.integers(0, len(intact) - 1))
    changed = {
        "bytes": lambda: data.draw(st.binary(max_size=300)),
        "flip": lambda: intact[:at] + bytes([intact[at] ^ data.draw(st.integers(1, 255))]) + intact[at + 1 :],
        "cut": lambda: intact[:at],
        "insert": lambda: intact[:at] + data.draw(st.binary(min_size=1, max_size=9)) + intact[at:],
    }[how]()
    written.write(name, changed)
    try:
        with pytest.raises(CheckpointError):
            load(written, 1)
    finally:
        written.write(name, intact)
    reads_or_names(written)


@relaxed
@given(data=st.data())
def test_a_manifest_with_the_right_checksum_and_anything_in_it(written, data):
    name = manifest_name(1)
    intact = written.read(name)
    body = json.loads(intact)["manifest"]
    for _ in range(data.draw(st.integers(1, 2))):
        place = body
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                place[key] = data.draw(JSON)
                break
            place = place[key]
    written.write(name, json.dumps({"sha256": sha256(canonical(body)), "manifest": body}).encode())
    try:
        reads_or_names(written)
    finally:
        written.write(name, intact)


ARRAYS = st.sampled_from(
    [
        np.zeros(0),
        np.arange(10),
        np.arange(10)[::-1].copy(),
        np.full(10, -1),
        np.full(10, 2**62),
        np.arange(4, dtype=np.float32),
        np.zeros((10, 3), np.float32),
        np.zeros((2, 3), np.float32),
        np.zeros((10, 2), np.float32),
        np.full(10, np.nan),
        np.zeros((), np.int64),
    ]
)


@relaxed
@given(data=st.data())
def test_files_with_the_right_checksum_and_other_arrays(written, data):
    from safetensors.numpy import load as load_tensors
    from safetensors.numpy import save

    intact = written.read(manifest_name(1))
    manifest = Manifest.model_validate(json.loads(intact)["manifest"])
    entry = data.draw(st.sampled_from([manifest.shared, manifest.states[0], manifest.clients[0]]))
    before = written.read(entry.name)
    tensors = dict(load_tensors(before))
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from([*tensors, "final.auc", "x.accuracy", "server.x"]))
        tensors[key] = data.draw(ARRAYS)
    changed = save(tensors)
    entry.bytes, entry.sha256 = len(changed), sha256(changed)
    body = manifest.model_dump(mode="json")
    written.write(entry.name, changed)
    written.write(manifest_name(1), json.dumps({"sha256": sha256(canonical(body)), "manifest": body}).encode())
    try:
        reads_or_names(written)
    finally:
        written.write(entry.name, before)
        written.write(manifest_name(1), intact)


@relaxed
@given(text=st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_a_journal_and_a_study_of_any_bytes(tmp_path, text):
    (tmp_path / "journal").write_bytes(text)
    assert all(isinstance(record.round, int) for record in read_journal(tmp_path / "journal"))
    (tmp_path / "study.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"study\.json"):
        StudyFolder(str(tmp_path)).read()
