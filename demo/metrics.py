"""What is counted and timed, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mobillama_v.demo.scheduler import Scheduler

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The metrics of one service, in a registry of its own; safe to use from several threads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "mobillama_v_requests_total", "HTTP requests to the API by status.", ["status"], registry=own
        )
        self.answers = Counter(
            "mobillama_v_answers_total",
            "Answers by how they ended: stop, length, stopped or error.",
            ["reason"],
            registry=own,
        )
        self.prompt_tokens = Counter(
            "mobillama_v_prompt_tokens_total", "Tokens of prompts, pictures included.", registry=own
        )
        self.new_tokens = Counter(
            "mobillama_v_new_tokens_total", "Tokens of answers that ended by themselves.", registry=own
        )
        self.pictures = Counter(
            "mobillama_v_pictures_total", "Pictures encoded; those found in the cache do not count.", registry=own
        )
        Gauge("mobillama_v_running", "Answers being computed.", registry=own).set_function(lambda: scheduler.running)
        Gauge("mobillama_v_waiting", "Answers that wait.", registry=own).set_function(lambda: scheduler.waiting)
        self.first_token = Histogram(
            "mobillama_v_first_token_seconds",
            "From a request's place in the queue to its first token.",
            buckets=_SECONDS,
            registry=own,
        )
        self.answer = Histogram(
            "mobillama_v_answer_seconds",
            "From a request's place in the queue to its answer's end.",
            buckets=_SECONDS,
            registry=own,
        )
