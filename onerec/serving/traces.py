"""OpenTelemetry spans, by option: one a request, below it one for each stage of its answer.

The stages of a batch stand in the trace of every request that was in it, so that each trace tells the whole of its
request's time. A caller's `traceparent` is taken up.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from onerec.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

# Stage -> beginning and end by time.perf_counter.
Stages = Mapping[str, tuple[float, float]]
_BAD_STATUS = 500


class Traces:
    """Gives requests their spans; without an exporter it does nothing, at next to no cost.

    Args:
        exporter: where finished spans go.
        batch: whether they go by the thread in packs, as a server needs, instead of each at once.
    """

    def __init__(self, exporter: "SpanExporter | None" = None, batch: bool = True) -> None:
        self._provider: Any = None
        self._tracer: Tracer | None = None
        if exporter is None:
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        self._provider = TracerProvider(resource=Resource.create({"service.name": "onerec"}))
        processor = BatchSpanProcessor(exporter) if batch else SimpleSpanProcessor(exporter)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(__name__)

    def request(self, scope: Scope) -> AbstractContextManager["RequestSpan"]:
        """The span of one request, current while it is handled."""
        if self._tracer is None:
            return nullcontext(RequestSpan(None, scope["method"]))
        return self._traced(self._tracer, scope)

    def note_stages(self) -> Callable[[Stages], None] | None:
        """What writes stages below the span that is current now, from any thread; None where nothing is traced."""
        if self._tracer is None:
            return None
        from opentelemetry import context

        parent, tracer = context.get_current(), self._tracer

        def note(stages: Stages) -> None:
            to_unix_s = time.time() - time.perf_counter()
            for name, (begin_s, end_s) in stages.items():
                begin_ns, end_ns = (int(1e9 * (to_unix_s + moment_s)) for moment_s in (begin_s, end_s))
                tracer.start_span(name, context=parent, start_time=begin_ns).end(end_ns)

        return note

    @contextmanager
    def _traced(self, tracer: "Tracer", scope: Scope) -> Iterator["RequestSpan"]:
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        method, parent = scope["method"], extract(dict(Headers(scope=scope)))
        with tracer.start_as_current_span(method, context=parent, kind=SpanKind.SERVER) as span:
            yield RequestSpan(span, method)

    def close(self) -> None:
        """Send what has not been sent."""
        if self._provider is not None:
            self._provider.shutdown()


class RequestSpan:
    """The span of a request, which learns its name and status in the end."""

    def __init__(self, span: "Span | None", method: str) -> None:
        self._span, self._method = span, method

    def end(self, route: str, status: int | None) -> None:
        """Say what the request turned out to be."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(f"{self._method} {route}")
        attributes = {"http.request.method": self._method, "http.route": route}
        if status is not None:
            attributes["http.response.status_code"] = status  # type: ignore[assignment]
            if status >= _BAD_STATUS:
                self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(attributes)


def traces_to(endpoint: str | None) -> Traces:
    """Traces sent by OTLP over HTTP to a collector, such as `http://localhost:4318/v1/traces`; none without one.

    Raises:
        ConfigError: the packages of the extra `traces` are not installed.
    """
    if endpoint is None:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"traces need the package {error.name}, which is not installed. Install the extra: pip install '.[traces]'"
        ) from None
    return Traces(OTLPSpanExporter(endpoint=endpoint))
