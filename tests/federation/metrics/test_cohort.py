import numpy as np

from raysim.federation.metrics.cohort import TrainedCohort
from raysim.training.tasks import Train, TrainingReport


def trained(clients, accepted, reports, loss, **others):
    ids, shares = np.array(clients), {"samples": np.ones(len(clients))}
    task = Train(round=0, index=0, clients=ids, read=ids, weights=shares, reports=np.array(reports))
    metrics = {"loss": np.array(loss), **others}
    samples = {name: 8.0 * (values > 0) for name, values in metrics.items()}
    return task, TrainingReport(np.array(accepted), metrics, samples, {}, None)


def test_means_are_those_of_clients_that_reported():
    num_train = np.array([1, 2, 3, 4, 5])
    results = [
        trained([3, 0], [True, True], [True, False], [2.0, 100.0]),
        trained([1, 2], [True, False], [True, True], [5.0, np.nan]),
    ]
    cohort = TrainedCohort(results, num_train, dropped=(4,))
    assert cohort.metrics() == {
        "cohort/size": 5.0,
        "cohort/reported": 2.0,
        "cohort/rejected": 1.0,
        "cohort/dropped": 1.0,
        "train/loss": (4 * 2.0 + 2 * 5.0) / 6,
    }
    assert cohort.rejected == [2]
    assert cohort.sent.tolist() == [False, True, True, True]


def test_a_round_without_anybody():
    nobody = TrainedCohort([], np.array([1, 2]), dropped=(0, 1))
    assert nobody.metrics() == {
        "cohort/size": 2.0,
        "cohort/reported": 0.0,
        "cohort/rejected": 0.0,
        "cohort/dropped": 2.0,
    }
    assert nobody.rejected == []


def test_a_metric_is_averaged_over_the_clients_that_got_to_its_steps():
    """Stragglers may stop before the phase that reports it."""
    yes = [True, True]
    results = [
        trained([0, 1], yes, yes, [1.0, 1.0]),  # a batch of which nobody got there
        trained([2, 3], yes, yes, [1.0, 1.0], head=np.array([0.0, 6.0])),
        trained([4], [True], [True], [1.0], head=np.array([3.0]), never=np.array([0.0])),
    ]
    metrics = TrainedCohort(results, np.array([1, 1, 1, 1, 2])).metrics()
    assert metrics["train/loss"] == 1.0
    assert metrics["train/head"] == (1 * 6.0 + 2 * 3.0) / 3
    assert "train/never" not in metrics
