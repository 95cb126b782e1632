"""What a person sees while runs are under way."""

import io

import pytest
from rich.console import Console

from raysim.experiments.progress import ProgressView
from raysim.experiments.status import RoundCompleted, RoundProgress, Status
from raysim.storage.records import RoundRecord

METRICS = {"personalized/accuracy_mean": 0.5, "train/loss": 1.25, "system/train_samples_per_second": 1000.0}
METRICS |= {"cohort/size": 4.0, "cohort/reported": 3.0}


def completed(round_, run=0, **left_out):
    return RoundCompleted(run, RoundRecord(round_, 0, METRICS, **left_out))


def shown(statuses, names, rounds, terminal=True):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, markup=False)
    view = ProgressView(console)
    for status in statuses:
        view(status, names, rounds)
    if terminal:
        console.print(view._view(statuses[-1], names, rounds))
    return console.file.getvalue()


def test_a_study_is_a_table_of_its_runs_under_one_bar():
    names, rounds = [f"run {i}" for i in range(20)], [4] * 20
    phases = ("finished", "finished", "running", "failed", "running", *["waiting"] * 15)
    running = RoundProgress(1, 2, 8, ("actor 0: train 3, 5",))
    progress = {0: RoundProgress(3, 0, 0, ()), 2: running, 4: RoundProgress(0, 1, 8, ("actor 0: train 7",))}
    events = (*(completed(i) for i in range(4)), completed(0, run=2))
    text = shown([Status("running", phases=phases, progress=progress, events=events)], names, rounds)
    assert "2 of 20 runs, rounds" in text
    assert "9/80" in text  # two runs that are finished, one of which an earlier command did, and one round
    rows = [line for line in text.splitlines() if " run " in line and "round" in line]
    assert "finished" in text.split("run 0 ")[1].splitlines()[0]
    assert "round 4 of 4" in text.split("run 0 ")[1].splitlines()[0]
    assert "round 1 of 4" in text.split("run 2 ")[1].splitlines()[0]
    assert "accuracy 50.0 %" in text.split("run 2 ")[1].splitlines()[0]
    assert "failed" in text.split("run 3 ")[1].splitlines()[0]
    assert len(rows) <= 12
    assert "and 8 more" in text
    assert "client batches 3 of 16" in text
    assert "actor 0: train 7" in text


def test_a_run_that_was_resumed_begins_where_it_was():
    status = Status("running", phases=("running", "waiting"), progress={0: RoundProgress(3, 2, 8, ())})
    text = shown([status], ["resumed", "other"], [5, 5])
    assert "3/10" in text
    assert "round 3 of 5" in text


def test_a_single_run_needs_no_table():
    status = Status("running", phases=("running",), progress={0: RoundProgress(2, 0, 0, ())}, events=(completed(2),))
    text = shown([status], ["mine"], [5])
    assert "mine, rounds" in text
    assert "3/5" in text
    assert "accuracy 50.0 % as trained · loss 1.250" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_a_round_that_is_played_again_is_told_once(terminal):
    again = Status("running", phases=("running",), events=(completed(1, rejected=(3,)),))
    text = shown([again, again, Status(events=("a message",))], ["mine"], [5], terminal=False)
    assert text.count("round 2 of 5: accuracy") == 1
    assert text.count("rejected client 3") == 1
    assert text.count("a message") == 1
    assert "1 of 4 did not report" in text
