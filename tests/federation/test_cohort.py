import numpy as np

from raysim.federation.cohort import evaluated_clients, participation, sample_cohort

from configs import tiny


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


def test_everybody_reports_and_does_all_its_work_unless_told_otherwise():
    reports, work = participation(tiny(), 0, np.arange(8))
    assert reports.all()
    assert work is None


def test_dropouts_and_stragglers_are_drawn_from_the_seed():
    config = tiny(cohort={"dropout": 0.3, "stragglers": 0.4}, data={"num_clients": 8})
    rounds = [participation(config, r, np.arange(8)) for r in range(300)]
    again = participation(config, 7, np.arange(8))
    assert np.array_equal(rounds[7][0], again[0])
    assert np.array_equal(rounds[7][1], again[1])
    reports, work = (np.stack(column) for column in zip(*rounds, strict=True))
    assert abs(reports.mean() - 0.7) < 0.05
    slow = work < 1
    assert abs(slow.mean() - 0.4) < 0.05
    assert abs(work[slow].mean() - 0.5) < 0.05
    assert abs(np.corrcoef(slow.ravel(), reports.ravel())[0, 1]) < 0.1
    other_seed = participation(tiny(seed=1, cohort={"dropout": 0.3, "stragglers": 0.4}), 7, np.arange(8))
    assert not np.array_equal(again[0], other_seed[0]) or not np.array_equal(again[1], other_seed[1])
