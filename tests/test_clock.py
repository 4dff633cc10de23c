"""The clock of the verbs."""

from lightning_polystep.clock import VERBS, VerbClock


def test_nested_verbs_are_charged_to_the_inner_one(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = VerbClock()
    with clock("observe"), clock("score"):
        pass
    assert clock.seconds == {**dict.fromkeys(VERBS, 0.0), "observe": 1.0 + 5.0, "score": 3.0}


def test_a_clock_starts_afresh():
    clock = VerbClock()
    with clock("score"):
        pass
    assert clock.seconds["score"] > 0
    clock.reset()
    assert clock.seconds == dict.fromkeys(VERBS, 0.0)
