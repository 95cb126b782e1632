"""What MLflow shows on the page of a run."""

from raysim.storage.records import RoundRecord
from raysim.tracking.run_description import describe_run

from configs import tiny


def test_the_last_round_of_the_run_is_named_even_if_it_ended_early():
    text = describe_run(tiny(rounds=9), None, "id", RoundRecord(4, 0, {"personalized/accuracy_mean": 0.5}))
    assert "After round 5:" in text
    assert "| personalized/accuracy_mean | 0.5000 |" in text


def test_many_metrics_of_ones_own_are_cut_where_mlflow_would_refuse_them():
    metrics = {f"personalized/a_metric_of_my_own_{i:04d}": 0.5 for i in range(400)}
    text = describe_run(tiny(), None, "id", RoundRecord(1, 0, metrics))
    assert len(text) < 8000
    shown = text.count("a_metric_of_my_own")
    assert f"| and {400 - shown} more |  |" in text
