"""What an accuracy is about, in words."""

import pytest

from raysim.views import ClientSet, View, headline


@pytest.mark.parametrize(
    ("rounds", "text"),
    [
        ((15,), "round 16"),
        ((35, 36, 37, 38, 39), "mean of rounds 36 to 40"),
        ((31, 33, 39), "mean of rounds 32, 34, 40"),
        (tuple(range(9, 100, 10)), "mean of rounds 10, 20, …, 100"),
        ("best round of each run", "best round of each run"),
    ],
)
def test_rounds_in_words_count_from_1(rounds, text):
    assert str(View("aggregated", ClientSet("all", 16), rounds)) == f"after aggregation, all 16 clients, {text}"


@pytest.mark.parametrize(
    ("asked", "number", "text"),
    [
        ("all", [16, 16], "all 16 clients"),
        ("all", [16, 64], "all clients"),
        ("cohort", [16], "the cohort of each round"),
        ("5", [16], "5 clients drawn once"),
    ],
)
def test_clients_as_a_configuration_asks_for_them(asked, number, text):
    assert str(ClientSet.asked(asked, number)) == text


def test_the_headline_follows_the_protocol_and_is_after_aggregation_where_runs_disagree():
    assert headline(["paper", "paper"]) == "personalized"
    assert headline(["aggregated"]) == "aggregated"
    assert headline(["paper", "aggregated"]) == "aggregated"
    assert View("personalized", ClientSet("cohort"), (0,)).metric("auc_mean") == "personalized/auc_mean"
