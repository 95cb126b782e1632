import numpy as np

from raysim.federation.metrics.cohort import TrainedCohort
from raysim.training.tasks import Train, TrainingReport


def trained(clients, accepted, reports, loss):
    ids, shares = np.array(clients), {"samples": np.ones(len(clients))}
    task = Train(round=0, index=0, clients=ids, read=ids, weights=shares, reports=np.array(reports))
    return task, TrainingReport(np.array(accepted), {"loss": np.array(loss)}, {}, None)


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
