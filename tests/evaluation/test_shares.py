"""Wilson intervals against the test they invert."""

import math

import pytest

from srpo.evaluation.shares import share


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (7, 10), (10, 10), (480, 512)])
def test_the_ends_of_the_interval_are_where_the_score_test_just_accepts(hits, count):
    """Wilson's interval holds the p for which |p_hat - p| <= z sqrt(p (1 - p) / n); at its ends they are equal."""
    found = share([True] * hits + [False] * (count - hits))
    assert found.share == hits / count
    for end in (found.low, found.high):
        assert abs(found.share - end) == pytest.approx(1.959964 * math.sqrt(max(end * (1 - end), 0) / count), abs=1e-7)


def test_a_share_reads_as_a_percentage_with_its_interval():
    assert str(share([True, True, True, False])) == "75.0% (30.1% to 95.4%, n = 4)"


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        share([])
