import numpy as np

from raysim.storage.accuracy_history import AccuracyRow
from raysim.storage.records import Records, RoundRecord


def test_tables():
    records = Records(
        [RoundRecord(0, 5, {"a": 1.0, "system/b": 2.0}, (4,), (1, 2)), RoundRecord(1, 6, {"a": 3.0})],
    )
    records.accuracy.add(AccuracyRow("personalized", 1, np.array([0, 2]), np.array([0.5, 1.0])))
    records.accuracy.add(AccuracyRow("aggregated", 1, np.array([2, 1]), np.array([0.25, 0.75])))
    assert records.left_out().values.tolist() == [[0, 1, "dropped"], [0, 2, "dropped"], [0, 4, "rejected"]]
    tables = records.accuracy_tables("two of three", 3)
    assert (tables["rounds"].tolist(), str(tables["clients"])) == ([1], "two of three")
    assert np.array_equal(tables["personalized"], [[0.5, np.nan, 1.0]], equal_nan=True)
    assert np.array_equal(tables["aggregated"], [[np.nan, 0.75, 0.25]], equal_nan=True)
    history = records.history("e", 7, "r")
    assert history[["name", "seed", "run_id", "round", "a"]].values.tolist() == [
        ["e", 7, "r", 0, 1.0],
        ["e", 7, "r", 1, 3.0],
    ]


def test_the_checksum_is_of_results_only():
    first = Records([RoundRecord(0, 5, {"a": 1.0, "system/b": 2.0})])
    assert first.checksum() == Records([RoundRecord(0, 9, {"system/b": 3.0, "a": 1.0})]).checksum()
    assert first.checksum() != Records([RoundRecord(0, 5, {"a": np.nextafter(1.0, 2), "system/b": 2.0})]).checksum()
    assert first.checksum() != Records([RoundRecord(1, 5, {"a": 1.0})]).checksum()
