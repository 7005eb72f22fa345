"""What /health says of the latest predictions."""

from coe_core.serving.health import IN_A_ROW, SECONDS, Health


def test_from_well_to_failing_and_back():
    now = [0.0]
    health = Health(lambda: now[0])
    assert health.report("ok").status == "ok"
    health.add(None)
    assert (health.report("ok").predicted, health.report("ok").reason) == (1, None)
    for _ in range(IN_A_ROW):
        assert health.report("ok").serving
        health.add(RuntimeError("of no interest"))
    report = health.report("ok")
    assert report.status == "failing"
    assert not report.serving
    assert report.reason == "5 of the last 6 predictions failed, at last with RuntimeError"
    health.add(None)
    assert health.report("ok").status == "degraded"
    now[0] += SECONDS + 1  # a server that is asked no more because it failed is tried again
    assert health.report("ok").status == "ok"


def test_few_failures_are_no_verdict():
    health = Health()
    for _ in range(IN_A_ROW - 1):
        health.add(ValueError())
    assert health.report("ok").status == "degraded"


def test_the_batcher_counts_most():
    health = Health()
    for state in ("hung", "dead"):
        report = health.report(state)
        assert (report.status, report.serving) == (state, False)
        assert report.reason
