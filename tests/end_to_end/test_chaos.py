"""A short version of the fault injection; ``python tests/support/chaos.py`` is the long one."""

import pytest

from chaos import harness


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_faults_of_every_kind_change_no_bit_and_lose_no_round(seed, capsys):
    said = []
    with harness(seed, said.append, rounds=8) as chaos:
        chaos.undisturbed("personal head")
        several = ["mlflow_down", "actor_killed", "node_lost"]  # a killed driver has tests of its own in test_resume.py
        chaos.episode("personal head", local=False, faults=len(several), kinds=None, order=several)
        chaos.episode("personal head", local=True, faults=1, kinds=["machine_killed"])
    tally = chaos.tally
    assert tally.mismatches == [], "\n".join(said)
    assert tally.finished == tally.runs == 2
    assert sum(tally.faults.values()) >= 4, said
