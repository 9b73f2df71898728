"""What the server counts, in the form Prometheus reads."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one application; they start at 0 with it.

    Args:
        replica: is written with every figure, where several applications answer one address: without it each look would
            find other counters under the same names. None where this one is alone.
    """

    def __init__(self, replica: str | None = None) -> None:
        self._registry = CollectorRegistry()
        self._replica = replica
        self._of_route: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self.responses = Counter(
            "onerec_responses", "Answers by route and status.", ["route", "status"], registry=self._registry
        )
        self.latency_s = Histogram(
            "onerec_latency_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.batch_requests = Histogram(
            "onerec_batch_requests", "Requests decoded together.", buckets=_REQUESTS, registry=self._registry
        )
        self.contexts_found = Counter(
            "onerec_contexts_found", "Histories whose encoding was kept from before.", registry=self._registry
        )
        self.waiting = Gauge("onerec_waiting_requests", "Requests in line.", registry=self._registry)
        self.catalogue_changes = Counter(
            "onerec_catalogue_changes", "Items added, restored, updated, removed.", ["change"], registry=self._registry
        )
        self.looks_failed = Counter(
            "onerec_catalogue_looks_failed",
            "Looks for other servers' changes that the store did not answer; answers may have been behind.",
            registry=self._registry,
        )
        self.events = Counter("onerec_events", "Events appended to histories.", registry=self._registry)

    def answered(self, route: str, status: str, seconds: float) -> None:
        """Count one answer."""
        counters = self._of_route.get((route, status))
        if counters is None:  # there are few of them, and to look one up takes longer than to count
            counters = self.responses.labels(route, status), self.latency_s.labels(route)
            self._of_route[route, status] = counters
        counters[0].inc()
        counters[1].observe(seconds)

    def page(self) -> bytes:
        """All figures as text."""
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """The figures as Prometheus' own library has them."""
        for family in self._registry.collect():
            if self._replica is not None:
                of_replica = {"replica": self._replica}
                family.samples = [each._replace(labels={**each.labels, **of_replica}) for each in family.samples]
            yield family
