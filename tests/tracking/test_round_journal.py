"""Each round reaches MLflow once, with the time at which it was complete, whatever happens to the server or to us."""

import pytest

from raysim.storage.records import RoundRecord
from raysim.tracking.round_journal import RunJournal, read_journal


class Server:
    """MLflow as a journal sees it."""

    def __init__(self):
        self.rounds, self.down, self.answer_lost = [], False, False

    def rounds_logged(self, run_id):
        self._reach()
        return {round_ for _, round_, _ in self.rounds}

    def log_round(self, run_id, round_, metrics, millis):
        self._reach()
        if (run_id, round_, millis) not in self.rounds:  # the same time, step and value is stored once
            self.rounds.append((run_id, round_, millis))
        if self.answer_lost:
            self.answer_lost = False
            raise ConnectionError("reset by peer")

    def _reach(self):
        if self.down:
            raise ConnectionError("refused")


def record(round_, millis=None):
    return RoundRecord(round_, 1000 + round_ if millis is None else millis, {"a": 1.0})


def test_rounds_wait_while_the_server_is_down_and_keep_their_times(outbox, notes, tmp_path):
    server = Server()
    server.down = True
    journal = RunJournal(server, outbox, "r", tmp_path / "j", resumed=False)
    for round_ in range(4):
        journal.add(record(round_))
    assert not outbox.flush(0.3)
    assert [r.round for r in read_journal(tmp_path / "j")] == [0, 1, 2, 3]
    server.down = False
    assert outbox.flush(5)
    assert server.rounds == [("r", i, 1000 + i) for i in range(4)]
    assert notes[0].startswith("MLflow does not answer (refused); the run goes on")
    assert notes[1].startswith("MLflow is back after")


def test_an_answer_that_is_lost_does_no_harm(outbox, tmp_path):
    server = Server()
    server.answer_lost = True
    RunJournal(server, outbox, "r", tmp_path / "j", resumed=False).add(record(0))
    assert outbox.flush(5)
    assert server.rounds == [("r", 0, 1000)]


def test_whoever_goes_on_sends_what_is_missing_and_nothing_twice(outbox, tmp_path):
    server = Server()
    server.rounds = [("r", 0, 1000), ("r", 1, 1001)]  # 2 was written down, but never arrived; 3 was only played
    (tmp_path / "j").write_text("")
    first = RunJournal(Server(), outbox, "r", tmp_path / "j", resumed=False)
    for round_ in range(3):
        first.add(record(round_))
    again = RunJournal(server, outbox, "r", tmp_path / "j", resumed=True, before=[record(0)])
    for round_ in (1, 2, 3):  # played again, at another time
        again.add(record(round_, 9000 + round_))
    assert outbox.flush(5)
    assert server.rounds == [("r", 0, 1000), ("r", 1, 1001), ("r", 2, 1002), ("r", 3, 9003)]


def test_on_another_machine_the_server_knows_what_it_has(outbox, tmp_path):
    server = Server()
    server.rounds = [("r", 0, 1000), ("r", 2, 1002)]
    journal = RunJournal(server, outbox, "r", tmp_path / "new", resumed=True, before=[record(0), record(1)])
    journal.add(record(2, 9002))
    journal.add(record(3, 9003))
    assert outbox.flush(5)
    assert server.rounds == [("r", 0, 1000), ("r", 2, 1002), ("r", 1, 1001), ("r", 3, 9003)]


@pytest.mark.parametrize("end", ['{"round": 2, "ti', "not json\n", '{"round": 2}\n', "[1]\n", "3\n", "\x00\xff\n"])
def test_a_last_line_that_is_not_whole_is_left_out(outbox, tmp_path, end):
    server, file = Server(), tmp_path / "j"
    journal = RunJournal(server, outbox, "r", file, resumed=False)
    journal.add(record(0))
    journal.add(record(1))
    file.write_text(file.read_text() + end)
    assert [r.round for r in read_journal(file)] == [0, 1]
    RunJournal(server, outbox, "r", file, resumed=True).add(record(2))
    assert [r.round for r in read_journal(file)] == [0, 1, 2]


def test_the_journal_of_an_attempt_that_was_given_up_is_not_read(outbox, tmp_path):
    RunJournal(Server(), outbox, "r", tmp_path / "j", resumed=False).add(record(0))
    server = Server()
    RunJournal(server, outbox, "other", tmp_path / "j", resumed=False).add(record(0, 5))
    assert outbox.flush(5)
    assert server.rounds == [("other", 0, 5)]


def test_a_full_disk_is_said_once_and_made_good(outbox, notes, tmp_path):
    server, file = Server(), tmp_path / "folder" / "j"
    journal = RunJournal(server, outbox, "r", file, resumed=False, notify=notes.append)
    journal.add(record(0))
    file.unlink()
    file.mkdir()  # as good as full: nothing can be written
    journal.add(record(1))
    journal.add(record(2))
    assert len(notes) == 1
    assert "can't be written" in notes[0]
    file.rmdir()
    journal.add(record(3))
    assert [r.round for r in read_journal(file)] == [0, 1, 2, 3]
    assert outbox.flush(5)
    assert [round_ for _, round_, _ in server.rounds] == [0, 1, 2, 3]
