"""What callbacks are told of a run, and what becomes of one that raises or ends the run, without Ray and MLflow."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import raysim
from raysim.errors import ConfigError
from raysim.experiments.callbacks.callback import CallbackError
from raysim.experiments.callbacks.making import check_callbacks, check_objects, make_callbacks
from raysim.experiments.listeners.callbacks import CallbackListener
from raysim.storage.records import RoundRecord

from configs import tiny


class Diary(raysim.Callback):
    def __init__(self, stop_at=None, raises=None):
        self.told, self.stop_at, self.raises = [], stop_at, raises

    def _write(self, what):
        self.told.append(what)
        if self.raises == what:
            raise KeyError("gone")

    def started(self, run):
        self._write("started")

    def round_completed(self, run, record):
        assert run.history[-1] is record
        with pytest.raises(TypeError):
            record.metrics["mine"] = 1.0  # what raysim goes on with can't be changed
        self._write(record.round)
        if record.round == self.stop_at:
            run.stop("enough")

    def checkpoint_written(self, run, rounds):
        self._write(f"checkpoint {rounds}")

    def ended(self, run, status, result, error):
        self._write((status, result, error))


class Store:
    def __init__(self):
        self.tags, self.rounds, self.files, self.known = {}, [], {}, {"mine": {0, 1}}

    def set_tags(self, run_id, tags):
        self.tags |= tags

    def log_round(self, run_id, round, metrics, millis):
        self.rounds.append((round, metrics))

    def rounds_logged(self, run_id, name):
        return self.known.get(name, set())

    def log_files(self, run_id, files):
        self.files |= files


class Counted:
    """A run as the listener sees it."""

    rounds = 20

    def end_after(self, rounds):
        self.rounds = min(self.rounds, rounds)


def listening(*callbacks, resumed=False, checkpoint=None):
    store, notes = Store(), []
    log = SimpleNamespace(store=store, experiment="experiment")
    outbox = SimpleNamespace(put=lambda call: call())
    named = [(type(callback).__name__, callback) for callback in callbacks]
    listener = CallbackListener(named, log, outbox, notes.append, Path("home"))
    placed = SimpleNamespace(entry="mine", config=tiny(rounds=20, tracking={"uri": "sqlite:////mlflow.db"}))
    state = SimpleNamespace(name="mine · seed 0", run_id="abc")
    listener.started(SimpleNamespace(placed=placed, state=state, checkpoint=checkpoint, resumed=resumed))
    return listener, store, notes


def records(*rounds):
    return [RoundRecord(i, 0, {"train/loss": 1.0 / (i + 1)}) for i in rounds]


def test_every_round_is_told_once_also_after_going_back_to_a_checkpoint():
    diary, run = Diary(), Counted()
    listener, _, _ = listening(diary)
    listener.rounds_begin(run, None)
    for record in records(0, 1, 2):
        listener.completed(record)
    listener.checkpoint_written(3)
    listener.rounds_begin(run, SimpleNamespace(records=SimpleNamespace(rounds=records(0, 1))))
    for record in records(2, 3):
        listener.completed(record)
    listener.finished(run, "result")
    listener.ended("FINISHED")
    assert diary.told == ["started", 0, 1, 2, "checkpoint 3", 3, ("FINISHED", "result", None)]


def test_a_run_that_goes_on_from_a_checkpoint_tells_of_its_rounds_before_that():
    diary = Diary()
    checkpoint = SimpleNamespace(records=SimpleNamespace(rounds=records(0, 1)), manifest=SimpleNamespace(round=2))
    listener, _, _ = listening(diary, checkpoint=checkpoint, resumed=True)
    listener.rounds_begin(Counted(), checkpoint)
    listener.completed(records(2)[0])
    assert diary.told == ["started", 0, 1, 2]
    assert listener._live.since == 2


def test_a_callback_ends_the_run_three_rounds_later_and_the_end_is_kept_when_rounds_are_repeated():
    run = Counted()
    listener, store, notes = listening(Diary(), Diary(stop_at=4))
    listener.rounds_begin(run, None)
    for record in records(*range(6)):
        listener.completed(record)
    assert run.rounds == 8  # rounds 5 and 6 were under way
    assert store.tags == {"raysim.ended_early": "after round 8: Diary: enough"}
    assert notes == ["mine · seed 0: ends after round 8 of 20: Diary: enough"]
    again = Counted()
    listener.rounds_begin(again, SimpleNamespace(records=SimpleNamespace(rounds=records(0, 1))))
    assert again.rounds == 8


@pytest.mark.parametrize("where", ["started", 1, "checkpoint 2"])
def test_one_that_raises_ends_its_run_with_its_name_and_traceback(where):
    other = Diary()

    def play():
        listener, _, notes = listening(Diary(raises=where), other)
        playing.append((listener, notes))
        listener.rounds_begin(Counted(), None)
        for record in records(0, 1):
            listener.completed(record)
        listener.checkpoint_written(2)

    playing = []
    with pytest.raises(CallbackError) as error:
        play()
    first, *trace = str(error.value).splitlines()
    what = {"started": "started", 1: "round_completed", "checkpoint 2": "checkpoint_written"}[where]
    assert first == f"callbacks: Diary raised KeyError('gone') in {what}"
    assert trace[0] == "Traceback (most recent call last):"
    assert any("_write" in line for line in trace)
    if playing:
        listener, notes = playing[0]
        listener.ended("FAILED", error.value)
        assert other.told[-1] == ("FAILED", None, error.value)
        assert notes == []


def test_one_that_raises_at_the_end_fails_a_run_with_results_and_is_only_told_of_a_failed_one():
    class Last(raysim.Callback):
        def ended(self, run, status, result, error):
            raise SystemExit(1)  # or a KeyboardInterrupt: whatever would end the thread

    listener, _, notes = listening(Last(), diary := Diary())
    with pytest.raises(CallbackError, match=r"called exit\(\), where run.stop\(\) ends a run, in ended"):
        listener.finished(Counted(), "result")
    listener.ended("FAILED", OSError("late"))
    assert [event[0] for event in diary.told[1:]] == ["FAILED"]
    listener, _, notes = listening(Last(), diary := Diary())
    listener.ended("KILLED", OSError("asked"))
    assert [event[0] for event in diary.told[1:]] == ["KILLED"]
    assert "callbacks: Last called exit()" in notes[0]


def test_numbers_and_files_of_ones_own_go_to_mlflow_once():
    class Logs(raysim.Callback):
        def round_completed(self, run, record):
            run.log({"mine": record.round}, record.round)
            run.log_files({"mine.txt": b"text"})

    for resumed, expected in ((False, [0, 1, 2]), (True, [2])):
        listener, store, _ = listening(Logs(), resumed=resumed)
        for record in records(0, 1, 2):
            listener.completed(record)
        assert store.rounds == [(i, {"mine": float(i)}) for i in expected]
        assert store.files == {"mine.txt": b"text"}
    for name in ("train/loss", "new_clients/mine", "difference/x"):
        with pytest.raises(ValueError, match=f"'{name}' could be a metric of raysim's own"):
            listener._live.log({name: 1.0}, 2)


def test_each_run_has_callbacks_of_its_own():
    diary = Diary()
    config = tiny(callbacks=[{"name": "own:Early", "options": {"patience": 2}}, "own:Early"])
    made = make_callbacks(config, [diary])
    again = make_callbacks(config, [diary])
    assert [name for name, _ in made] == ["own:Early", "own:Early", "Diary"]
    assert [callback.patience for _, callback in made[:2]] == [2, 3]
    assert not {id(callback) for _, callback in made} & {id(callback) for _, callback in (*again, ("", diary))}


@pytest.mark.parametrize(
    ("callbacks", "problem"),
    [
        (["own:Early:", "own:Late"], "Early:"),
        (["nowhere:Early"], "callbacks: there is no module 'nowhere'"),
        (["own:Late"], "callbacks: the module 'own' .* has no 'Late'"),
        ([{"name": "own:Early", "options": {"pace": 1}}], "callbacks.options.pace: own:Early has no such option"),
        (
            [{"name": "own:Early", "options": {"patience": "a"}}],
            "callbacks.options.patience: Input should be a valid int",
        ),
        (["own:Gain"], "own:Gain needs it"),
        (["own:spread"], "callbacks.options.results: own:spread needs it"),
        ([{"name": "own:Stripes"}], "'own:Stripes' is not derived from raysim.Callback"),
    ],
)
def test_wrong_ones_are_refused_before_anything_starts(callbacks, problem):
    with pytest.raises((ConfigError, ValueError), match=problem):
        check_callbacks(tiny(callbacks=callbacks))


def test_what_is_no_callback_is_told(monkeypatch):
    with pytest.raises(ConfigError, match="the class Diary is no object of a class derived from raysim.Callback"):
        check_objects([Diary])
    with pytest.raises(ConfigError, match="a str is no object"):
        check_objects(["own:Early"])
    with pytest.raises(ConfigError, match="'own:no_callback' gives a int, no raysim.Callback"):
        make_callbacks(tiny(callbacks=["own:no_callback"]), [])
    monkeypatch.setattr("raysim.experiments.callbacks.making.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'raysim\[wandb\]'"):
        check_callbacks(tiny(callbacks=["wandb"]))
