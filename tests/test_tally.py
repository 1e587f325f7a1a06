"""The tally: rules, turnout, and the certainty that closes a proposal early."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row

_RULES = ["majority", "unanimous", "threshold"]
_BALLOTS = ["yes", "no", "abstain", None]
_weights = st.sampled_from([Decimal(w) for w in ("1", "1", "1", "2", "3", "0.1", "0.3", "0.7", "0", "1000000")])
_electorates = st.lists(st.tuples(_weights, st.sampled_from(_BALLOTS)), min_size=1, max_size=6).filter(
    lambda electors: any(weight for weight, _ in electors) and sum(c is None for _, c in electors) <= 4
)
_shares = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 1.0])
_rules = st.tuples(
    st.sampled_from(_RULES), st.sampled_from([0.1, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.9, 1.0]), _shares
)
_relaxed = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


def passes(rule: str, threshold: float, min_turnout: float, electors: list[tuple[Decimal, str | None]]) -> bool:
    """The definition, in fractions."""
    weight = {
        ballot: sum((Fraction(w) for w, choice in electors if choice == ballot), Fraction(0)) for ballot in _BALLOTS
    }
    yes, no = weight["yes"], weight["no"]
    total = sum(weight.values())
    if float((yes + no + weight["abstain"]) / total) < min_turnout:
        return False
    if rule == "majority":
        return yes > no
    if rule == "unanimous":
        return yes > 0 and no == 0
    return yes > 0 and float(yes / (yes + no)) >= threshold


class Tallier:
    """Calls the SQL function."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def __call__(self, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]]) -> dict[str, Any]:
        name, threshold, min_turnout = rule
        found = self._connection.execute(
            "SELECT * FROM blackboard.tally_of(%s::text, %s::float8, %s::float8, %s::numeric[], %s::text[])",
            (name, threshold, min_turnout, [w for w, _ in electors], [c for _, c in electors]),
        ).fetchone()
        assert found is not None
        return found


@pytest.fixture
def tally(database_url: str) -> Iterator[Tallier]:
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as connection:
        yield Tallier(connection)


@_relaxed
@given(rule=_rules, electors=_electorates)
def test_outcome_is_the_definition(
    tally: Tallier, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]]
) -> None:
    counted = tally(rule, electors)
    assert (counted["outcome"] == "accepted") == passes(*rule, electors)
    assert counted["votes_for"] == sum(c == "yes" for _, c in electors)
    assert counted["votes_against"] == sum(c == "no" for _, c in electors)
    assert counted["abstentions"] == sum(c == "abstain" for _, c in electors)
    assert counted["outstanding"] == sum(c is None for _, c in electors)
    assert counted["weight_total"] == sum(w for w, _ in electors)


@_relaxed
@given(rule=_rules, electors=_electorates)
def test_certain_means_that_no_completion_differs(
    tally: Tallier, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]]
) -> None:
    counted = tally(rule, electors)
    cast = [(w, c) for w, c in electors if c is not None]
    waiting = [w for w, c in electors if c is None]
    outcomes = {
        passes(*rule, [*cast, *zip(waiting, ballots, strict=True)])
        for ballots in itertools.product(_BALLOTS, repeat=len(waiting))
    }
    assert counted["certain"] == (len(outcomes) == 1)


@_relaxed
@given(rule=_rules, electors=_electorates)
def test_everybody_has_voted_is_certain(
    tally: Tallier, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]]
) -> None:
    assert tally(rule, [(w, c or "abstain") for w, c in electors])["certain"]


@_relaxed
@given(rule=_rules, electors=_electorates)
def test_an_abstention_counts_for_the_turnout_only(
    tally: Tallier, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]]
) -> None:
    name, threshold, _ = rule
    abstaining = [(w, "abstain" if c is None else c) for w, c in electors]
    silent = [(w, None if c == "abstain" else c) for w, c in electors]
    anyhow = (name, threshold, 0.0)
    assert tally(anyhow, abstaining)["outcome"] == tally(anyhow, silent)["outcome"]


@_relaxed
@given(rule=_rules, electors=_electorates, data=st.data())
def test_order_does_not_matter(
    tally: Tallier, rule: tuple[str, float, float], electors: list[tuple[Decimal, str | None]], data: st.DataObject
) -> None:
    assert tally(rule, electors) == tally(rule, data.draw(st.permutations(electors)))


def _ballots(yes: int = 0, no: int = 0, abstain: int = 0, outstanding: int = 0) -> list[tuple[Decimal, str | None]]:
    one = Decimal(1)
    return [(one, "yes")] * yes + [(one, "no")] * no + [(one, "abstain")] * abstain + [(one, None)] * outstanding


@pytest.mark.parametrize(
    ("rule", "electors", "outcome", "certain"),
    [
        (("majority", 0, 0.5), _ballots(yes=2, abstain=1), "accepted", True),
        (("majority", 0, 0.5), _ballots(yes=2, no=2), "rejected", True),
        (("majority", 0, 0.5), _ballots(yes=2, outstanding=1), "accepted", True),
        (("majority", 0, 0.5), _ballots(yes=2, outstanding=2), "accepted", False),
        (("majority", 0, 0.9), _ballots(yes=3, outstanding=1), "rejected", False),
        (("majority", 0, 0.5), _ballots(abstain=3), "rejected", True),
        (("majority", 0, 0.5), _ballots(no=2, outstanding=2), "rejected", True),
        (("threshold", 2 / 3, 0), _ballots(yes=2, no=1), "accepted", True),
        (("threshold", 0.7, 0), _ballots(yes=7, no=3), "accepted", True),
        (("threshold", 0.7, 0), _ballots(yes=6, no=3), "rejected", True),
        (("threshold", 0.1, 0), _ballots(abstain=2), "rejected", True),
        (("unanimous", 0, 1), _ballots(yes=2, abstain=1), "accepted", True),
        (("unanimous", 0, 1), _ballots(no=1, outstanding=2), "rejected", True),
        (("unanimous", 0, 0), _ballots(yes=2, outstanding=1), "accepted", False),
        (("unanimous", 0, 1), _ballots(yes=2, outstanding=1), "rejected", False),
    ],
)
def test_examples(
    tally: Tallier,
    rule: tuple[str, float, float],
    electors: list[tuple[Decimal, str | None]],
    outcome: str,
    certain: bool,
) -> None:
    counted = tally(rule, electors)
    assert (counted["outcome"], counted["certain"]) == (outcome, certain)


def test_weights_are_summed_exactly(tally: Tallier) -> None:
    tenths = [(Decimal("0.1"), "yes")] * 3 + [(Decimal("0.3"), "no")]
    assert tally(("majority", 0, 0), tenths)["outcome"] == "rejected"
    assert tally(("threshold", 0.75, 0), [(Decimal("0.3"), "yes"), (Decimal("0.1"), "no")])["outcome"] == "accepted"


def test_an_unknown_rule_passes_nothing(tally: Tallier) -> None:
    assert tally((uuid.uuid4().hex, 0.5, 0.0), _ballots(yes=3))["outcome"] == "rejected"
