import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raysim.data.partition import Partition
from raysim.federation.metrics.clients import ClientResults, auc_micro, grouped_auc
from raysim.training.evaluation import Evaluation


def evaluation(clients, correct, probabilities):
    counts = [len(p) for p in probabilities]
    return Evaluation(
        np.array(clients), np.array(correct), np.array(counts), np.concatenate(probabilities).astype(np.float32)
    )


# Client 0 trains on sample 0 and tests on 1, 2; client 1 trains on 3 and tests on 4.
PARTITION = Partition(np.array([0, 1, 2, 3, 4]), np.array([0, 3, 5]), np.array([1, 1]))
LABELS = np.array([0, 0, 1, 0, 1])
P0 = np.array([[0.9, 0.1], [0.6, 0.4]])  # right, wrong
P1 = np.array([[0.2, 0.8]])  # right


def test_metrics_by_hand_in_client_order_whatever_the_order_of_arrival():
    parts = [evaluation([1], [1], [P1]), evaluation([0], [1], [P0])]
    for arrived in (parts, parts[::-1]):
        results = ClientResults.merge(arrived)
        assert results.clients.tolist() == [0, 1]
        metrics = results.metrics("personalized", LABELS[PARTITION.tests(results.clients)])
        assert metrics["personalized/accuracy_mean"] == 0.75
        assert metrics["personalized/accuracy_std"] == 0.25
        assert metrics["personalized/accuracy_weighted"] == pytest.approx(2 / 3)
        assert metrics["personalized/accuracy_worst_decile"] == 0.5
        # Positives score .9 .4 .8, negatives .1 .6 .2: of nine pairs only (.4, .6) is the wrong way round.
        assert metrics["personalized/auc_micro"] == pytest.approx(8 / 9)
        # Client 0 has (.9 .4) over (.1 .6), three of four pairs; client 1 has .8 over .2.
        assert metrics["personalized/auc_mean"] == (0.75 + 1.0) / 2
        assert metrics["personalized/auc_weighted"] == pytest.approx((2 * 0.75 + 1 * 1.0) / 3)
        assert metrics["personalized/not_evaluated"] == 0.0
    assert results.client_auc(LABELS[[1, 2, 4]]).tolist() == [0.75, 1.0]


def test_the_worst_decile_of_twenty_clients_is_two():
    parts = [evaluation([c], [c % 11], [np.full((10, 2), 0.5)]) for c in range(20)]
    labels = np.zeros(200, int)
    accuracies = sorted((c % 11) / 10 for c in range(20))
    metrics = ClientResults.merge(parts).metrics("aggregated", labels)
    assert metrics["aggregated/accuracy_worst_decile"] == pytest.approx(np.mean(accuracies[:2]))


def test_only_keeps_those_that_were_asked_for():
    results = ClientResults.merge([evaluation([0, 1], [1, 1], [P0, P1])]).only(np.array([1]))
    assert (results.clients.tolist(), results.correct.tolist(), results.probabilities.tolist()) == (
        [1],
        [1],
        np.float32(P1).tolist(),
    )


def test_results_on_validation_samples_go_with_those_on_test_samples():
    # Client 0 trains on sample 0, validates on 1, 2 and tests on 3; client 1 trains on 4, validates on 5, tests on 6, 7.
    data = Partition(np.arange(8), np.array([0, 4, 8]), np.array([1, 1]), np.array([2, 1]))
    hits = {0: np.array([True, True, False]), 1: np.array([False, True, False])}
    rows = {c: (10 * c + np.arange(3))[:, None].astype(np.float32) for c in (0, 1)}
    parts = [Evaluation.of(np.array([c]), rows[c], hits[c], data) for c in (1, 0)]
    results = ClientResults.merge(parts)
    assert (results.correct.tolist(), results.num_samples.tolist()) == ([0, 1], [1, 2])
    assert results.probabilities[:, 0].tolist() == [2, 11, 12]
    assert results.validation.accuracy.tolist() == [1.0, 0.0]
    assert results.validation.probabilities[:, 0].tolist() == [0, 1, 10]
    assert results.only(np.array([1])).validation.correct.tolist() == [0]
    both = Evaluation.of(np.array([1, 0]), np.concatenate([rows[1], rows[0]]), np.concatenate([hits[1], hits[0]]), data)
    for part in (both, both.validation):
        of = results if part is both else results.validation
        assert ClientResults.merge([part]).correct.tolist() == of.correct.tolist()
        assert (ClientResults.merge([part]).probabilities == of.probabilities).all()


def test_a_client_twice_is_an_error():
    with pytest.raises(AssertionError, match="twice"):
        ClientResults.merge([evaluation([0], [1], [P0]), evaluation([0], [1], [P0])])


def test_auc_of_constant_scores_is_one_half():
    assert auc_micro(np.full((4, 3), 1 / 3, np.float32), np.array([0, 1, 2, 0])) == 0.5


def test_auc_of_many_clients_at_once_is_that_of_each():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, 30)
    probabilities = [np.round(rng.dirichlet(np.ones(4), n), 1) for n in counts]  # rounded: ties
    parts = [evaluation([c], [0], [p]) for c, p in enumerate(probabilities)]
    offsets = np.concatenate([[0], np.cumsum(counts + 1)])
    partition = Partition(np.arange(offsets[-1]), offsets, np.ones(30, int))
    labels = rng.integers(0, 4, offsets[-1])
    each = [auc_micro(p.astype(np.float32), labels[partition.test(c)]) for c, p in enumerate(probabilities)]
    np.testing.assert_allclose(
        ClientResults.merge(parts).client_auc(labels[partition.tests(np.arange(30))]), each, atol=1e-12
    )


@pytest.mark.parametrize(("classes", "digits"), [(2, 8), (2, 1), (10, 8), (10, 2)])
def test_auc_is_that_of_scikit_learn(classes, digits):
    rng = np.random.default_rng(classes + digits)
    probabilities = np.round(rng.dirichlet(np.ones(classes), 200), digits).astype(np.float32)  # 1 or 2 digits: ties
    labels = rng.integers(0, classes, 200)
    one_hot = labels[:, None] == np.arange(classes)
    assert auc_micro(probabilities, labels) == pytest.approx(roc_auc_score(one_hot, probabilities, average="micro"))
    sizes = np.array([1, 79, 120])
    starts = np.cumsum(sizes) - sizes
    each = [
        roc_auc_score(one_hot[start : start + size].ravel(), probabilities[start : start + size].ravel())
        for start, size in zip(starts, sizes, strict=True)
    ]
    np.testing.assert_allclose(grouped_auc(probabilities, labels, sizes), each, atol=1e-12)


def test_auc_of_a_model_without_any_probability_is_one_half():
    """As of one that diverged; minus zero is zero."""
    nothing = np.array([[0.0, -0.0], [-0.0, 0.0]], np.float32)
    assert grouped_auc(nothing, np.array([0, 1]), np.array([1, 1])).tolist() == [0.5, 0.5]
