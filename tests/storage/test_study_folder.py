import subprocess
import sys

import pytest

from raysim.errors import ConfigError
from raysim.storage.checkpoint_writer import CheckpointWriter
from raysim.storage.study_folder import StudyFolder, check_checkpoints, differences, new_name, new_state, unfinished

from configs import tiny

URI = "sqlite:////store.db"


def state_of(config):
    return new_state(config, URI, config.name, None)


def test_what_is_written_is_read(tmp_path):
    folder = StudyFolder(str(tmp_path / "a"))
    assert folder.read() is None
    entries = [{"name": "a/b ☃", "seeds": [0, 1]}, {"name": "c"}]
    state = state_of(tiny(study=entries))
    folder.write(state)
    assert folder.read() == state
    assert [row.folder for row in state.runs] == ["00-a-b-seed-0", "01-a-b-seed-1", "02-c-seed-0"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff", b'{"format": 1}', b"[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "study.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"study\.json: is damaged or not of this version"):
        StudyFolder(str(tmp_path)).read()


def test_a_run_may_not_leave_the_folder(tmp_path):
    state = state_of(tiny())
    state.runs[0].folder = "../elsewhere"
    StudyFolder(str(tmp_path)).write(state)
    with pytest.raises(ConfigError, match="1 fields are wrong"):
        StudyFolder(str(tmp_path)).read()


def test_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("raysim.storage.study_folder.LOCK_SECONDS", 0.5)
    code = (
        "import sys, raysim.storage.study_folder as s; s.StudyFolder(sys.argv[1]).lock(); print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "1\n"
    folder = StudyFolder(str(tmp_path))
    with pytest.raises(ConfigError, match="another process is at work on these runs; `raysim attach"):
        folder.lock()
    other.kill()  # the lock of a process that was killed is free
    other.wait()
    folder.lock()
    folder.unlock()
    folder.lock()
    folder.unlock()


def dumped(**changes):
    return tiny(**changes).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"train": {"optimizer": {"lr": 0.2}}}, "train.optimizer.lr: was 0.1, is 0.2"),
        ({"algorithm": {"name": "fedavg"}}, "algorithm.mid_dim: was 4, is None"),
        ({"resources": {"clients_per_batch": 4}}, "resources.clients_per_batch: was 2, is 4"),
        ({"resources": {"precision": "bfloat16"}}, "resources.precision: was 'float32', is 'bfloat16'"),
        ({"rounds": 1}, "rounds: was 2, is 1"),
        ({"rounds": 3, "train": {"schedule": "cosine"}}, "rounds: was 2, is 3"),
        ({"rounds": 3, "study": [{"name": "a", "train": {"schedule": "cosine"}}]}, "rounds: was 2, is 3"),
        ({"rounds": 3, "algorithm": {"name": "fedphp"}}, "rounds: was 2, is 3"),
        ({"resources": {"batches_per_round": 3}}, "resources.batches_per_round: was 'auto', is 3"),
        ({"cohort": {"dropout": 0.1}}, "cohort.dropout: was 0.0, is 0.1"),
    ],
)
def test_what_would_change_results_is_told(changes, line):
    assert line in differences(dumped(), dumped(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"resources": {"num_actors": 7, "client_timeout": 3.0, "max_retries": 9}},
        {"checkpoint": {"dir": "/x", "every": 1}},
        {"tracking": {"uri": URI}},
        {"cohort": {"on_failure": "drop"}},
        {"rounds": 3},  # they come after those that there are
    ],
)
def test_what_changes_no_result_may_change(changes):
    assert differences(dumped(), dumped(**changes)) == []


def test_the_newest_unfinished_study_in_the_same_words_is_found(tmp_path):
    config = tiny(study=[{"name": "a"}])
    assert unfinished(str(tmp_path), config, URI) is None
    for name, changes, asked in [
        ("tiny-20260101-000000-aaaaaa", {}, config),
        ("tiny-20260103-000000-aaaaaa", {}, config),
        ("tiny-20260102-000000-aaaaaa", {}, config),
        ("tiny-20260104-000000-aaaaaa", {"finished": True}, config),
        ("tiny-20260105-000000-aaaaaa", {"tracking_uri": "http://other"}, config),
        ("tiny-20260106-000000-aaaaaa", {}, tiny(study=[{"name": "b"}])),
    ]:
        StudyFolder(str(tmp_path / name)).write(state_of(asked).model_copy(update=changes))
    (tmp_path / "tiny-20260107-000000-aaaaaa").mkdir()
    (tmp_path / "tiny-20260107-000000-aaaaaa" / "study.json").write_text("damaged")
    assert unfinished(str(tmp_path), config, URI) == str(tmp_path / "tiny-20260103-000000-aaaaaa")
    other_actors = tiny(study=[{"name": "a"}], resources={"num_actors": 1})
    assert unfinished(str(tmp_path), other_actors, URI) is not None
    for key, value in {"clients_per_batch": 4, "precision": "bfloat16", "device": "cuda"}.items():  # change results
        assert unfinished(str(tmp_path), tiny(study=[{"name": "a"}], resources={key: value}), URI) is None


def test_names_are_readable_and_no_two_are_equal():
    names = {new_name(tiny(name="Paper: Table 3")) for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("paper-table-3-20") for name in names)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_offered(tmp_path):
    import numpy as np

    from raysim.storage.checkpoint import Snapshot, rounds_in
    from raysim.storage.records import Records

    folder, state = StudyFolder(str(tmp_path)), state_of(tiny())
    state.runs[0].run_id = "r"
    place = folder.of(state.runs[0])
    writer = CheckpointWriter(place, 2, {}, {}, lambda a: np.zeros((len(a), 1), np.float32), 2, 1)
    nobody = np.full(2, -1, np.int64)
    for round_ in (3, 6):
        writer.write(
            Snapshot(round_, np.full(2, round_, np.float32), {}, Records(), None, nobody, np.zeros(2, np.int64))
        )
        writer.finished(wait=True)
    assert check_checkpoints(folder, state, None) == ["tiny: goes on with round 7"]
    (name,) = [n for n in place.files() if n.startswith("shared-000006")]
    (tmp_path / state.runs[0].folder / name).write_bytes(b"x")
    with pytest.raises(
        ConfigError, match=rf"{name}: it has 1 bytes.*of 3 rounds is intact.*raysim resume .* --round 3"
    ):
        check_checkpoints(folder, state, None)
    assert check_checkpoints(folder, state, 3) == ["tiny: goes on with round 4"]
    assert rounds_in(place) == [3]
    for path in (tmp_path / state.runs[0].folder).glob("shared-*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"it is missing; no other checkpoint is intact.*--round 0"):
        check_checkpoints(folder, state, None)
    assert check_checkpoints(folder, state, 0) == ["tiny: goes on with round 1"]


def test_keys_that_an_earlier_version_did_not_have_are_as_by_default():
    old = dumped()
    del old["evaluate"]["sensitivity"], old["data"]["layout"], old["resources"]["batches_per_round"]
    assert differences(old, dumped()) == []
    assert differences(old, dumped(evaluate={"sensitivity": False})) == ["evaluate.sensitivity: was 'auto', is False"]
