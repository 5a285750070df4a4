"""What the server counts, in the form of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; an `Observer` of its models."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "deltalm_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "deltalm_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "deltalm_batch_sentences",
            "Sentences that are searched together, whenever some have entered.",
            ["model"],
            buckets=SENTENCES,
            registry=self._registry,
        )
        self._cached = Counter(
            "deltalm_cached_sentences",
            "Sentences that were translated before.",
            ["model"],
            registry=self._registry,
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request is answered."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, model: str, num_sentences: int) -> None:
        """See `Observer`."""
        self._batches.labels(model).observe(num_sentences)

    def cached(self, model: str, num_sentences: int) -> None:
        """See `Observer`."""
        self._cached.labels(model).inc(num_sentences)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Tell this value whenever somebody asks."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
