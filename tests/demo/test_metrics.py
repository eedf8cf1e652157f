"""Prometheus' text format."""

from __future__ import annotations

from mobillama_v.demo.metrics import Metrics


def test_text() -> None:
    metrics = Metrics()
    metrics.counter("asked_total", "Asked.")
    metrics.gauge("here", "Here.", lambda: 3)
    metrics.histogram("took_seconds", "Took.")
    assert "asked_total 0\n" in metrics.text()
    metrics.add("asked_total", status='4"\n')
    metrics.add("asked_total", 12345678, status="ok")
    for seconds in (0.01, 0.07, 7.0, 1000.0):
        metrics.observe("took_seconds", seconds)
    lines = metrics.text().splitlines()
    assert lines[:2] == ["# HELP asked_total Asked.", "# TYPE asked_total counter"]
    assert 'asked_total{status="4\\"\\n"} 1' in lines and 'asked_total{status="ok"} 12345678' in lines
    assert "here 3" in lines and "# TYPE took_seconds histogram" in lines
    buckets = [line for line in lines if "_bucket" in line]
    assert buckets[0] == 'took_seconds_bucket{le="0.05"} 1' and buckets[1] == 'took_seconds_bucket{le="0.1"} 2'
    assert buckets[-1] == 'took_seconds_bucket{le="+Inf"} 4' and buckets[-2] == 'took_seconds_bucket{le="120"} 3'
    assert "took_seconds_count 4" in lines and "took_seconds_sum 1007.080000" in lines
