"""The accuracies of all rounds, in a file."""

import threading
import tracemalloc

import numpy as np

from raysim.storage.accuracy_history import AccuracyHistory, AccuracyRow


def filled(rounds, clients=5):
    history = AccuracyHistory()
    for round_ in range(rounds):
        for model in ("personalized", "aggregated"):
            history.add(AccuracyRow(model, round_, np.arange(clients), np.arange(clients) / clients + round_))
    return history


def test_rows_come_back_in_order_and_from_anywhere():
    history = filled(3)
    assert len(history) == 6
    assert [(row.model, row.round) for row in history.rows(3, 5)] == [("aggregated", 1), ("personalized", 2)]
    assert next(history.rows(4)).accuracy.tolist() == [2.0, 2.2, 2.4, 2.6, 2.8]
    assert history.rounds("aggregated") == [0, 1, 2]
    assert history.table("aggregated", 6, [2, 0])[:, [0, 4]].tolist() == np.float32([[2.0, 2.8], [0.0, 0.8]]).tolist()
    assert np.isnan(history.table("aggregated", 6)[:, 5]).all()
    assert np.isnan(history.table("aggregated", 6, [2, 7])[1]).all()  # a round that has no row
    assert AccuracyHistory().table("aggregated", 6).shape == (0, 6)


def test_memory_does_not_grow_with_clients_times_rounds():
    """200 rounds of 20,000 clients are 128 MB, of which one row is in memory at a time."""
    tracemalloc.start()
    try:
        history = filled(200, 20_000)
        for _ in history.rows():
            pass
        assert history.table("aggregated", 20_000).shape == (200, 20_000)
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_a_thread_may_read_while_another_adds():
    history, wrong = filled(1), []

    def read():
        for _ in range(200):
            stop = len(history)
            wrong.extend(row for row in history.rows(0, stop) if row.accuracy[0] != row.round)

    thread = threading.Thread(target=read)
    thread.start()
    for round_ in range(1, 200):
        history.add(AccuracyRow("aggregated", round_, np.arange(5), np.arange(5) / 5 + round_))
    thread.join()
    assert not wrong
