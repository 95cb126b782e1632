import numpy as np
from conftest import tiny

from raysim.cohort import evaluated_clients, sample_cohort


def test_cohorts_are_sampled_by_seed_and_round_without_replacement():
    config = tiny()
    cohorts = [sample_cohort(config, r) for r in range(20)]
    assert all(len(set(c.tolist())) == 4 and (np.diff(c) > 0).all() for c in cohorts)
    assert np.array_equal(cohorts[3], sample_cohort(config, 3))
    assert len({tuple(c) for c in cohorts}) > 10
    assert set(np.concatenate(cohorts).tolist()) == set(range(8))
    assert not all(np.array_equal(c, sample_cohort(tiny(seed=1), r)) for r, c in enumerate(cohorts))


def test_a_given_schedule_is_followed():
    config = tiny(cohort={"schedule": [[5, 2], [7]]})
    assert [sample_cohort(config, r).tolist() for r in range(2)] == [[2, 5], [7]]


def test_who_is_evaluated():
    cohort = np.array([1, 4])
    assert evaluated_clients(tiny(), cohort).tolist() == list(range(8))
    assert evaluated_clients(tiny(evaluate={"clients": "cohort"}), cohort).tolist() == [1, 4]
    sample = evaluated_clients(tiny(evaluate={"clients": 3}), cohort)
    assert len(set(sample.tolist())) == 3
    assert np.array_equal(sample, evaluated_clients(tiny(evaluate={"clients": 3}), np.array([0])))
