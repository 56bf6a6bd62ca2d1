"""Processes that store votes and are killed at any moment: nothing acknowledged is lost, nothing is there twice."""

from __future__ import annotations

import sqlite3

from benchmarks.studies import kill_writers


def test_ten_kills_lose_no_acknowledged_vote_and_store_none_twice(place):
    kills, acknowledged, lost, doubled = kill_writers(place, 10)
    assert (kills, lost, doubled) == (10, 0, 0)
    assert acknowledged >= 10
    if "://" not in place:
        connection = sqlite3.connect(place)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


def test_the_count_of_lost_and_doubled_votes_sees_both(tmp_path, monkeypatch):
    """A store that forgets every vote it acknowledges, and one that keeps another answer than it was given."""
    from srpo.studies.store import Receipt, Store

    with monkeypatch.context() as forgetful:
        forgetful.setattr(Store, "vote", lambda self, code, ticket, answers, dwell_s: Receipt(True, dict(answers)))
        forgetful.setattr(Store, "undo", lambda self, code: None)
        _, acknowledged, lost, _ = kill_writers(str(tmp_path / "forgetful.db"), 1)
        assert acknowledged > 0 and lost > 0
    honest = Store.vote

    def ties(self, code, ticket, answers, dwell_s):
        return honest(self, code, ticket, {"overall": "tie"}, dwell_s)

    with monkeypatch.context() as lying:
        lying.setattr(Store, "vote", ties)
        _, acknowledged, _, doubled = kill_writers(str(tmp_path / "lying.db"), 3)
        assert acknowledged > 0 and doubled > 0
