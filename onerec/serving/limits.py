"""How much one request may ask for, and how long it may wait."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from onerec.errors import ServingError
from onerec.model.precision import Precision
from onerec.serving.schema import RecommendRequest
from tokenizer.settings import Settings


class Limits(Settings):
    """Bounds on a request and on the line before the model, beyond which it is refused; how the model runs."""

    max_k: PositiveInt = Field(100, description="items returned")
    max_beams: PositiveInt = Field(512, description="prefixes kept in the search")
    max_history_items: PositiveInt = Field(10_000, description="items of a history")
    max_excluded_items: PositiveInt = Field(10_000, description="items in `exclude`")
    max_filter_values: PositiveInt = Field(10_000, description="items and values in `filter`")
    max_body_bytes: PositiveInt = Field(1_048_576, description="bytes of a request's body")
    max_events: PositiveInt = Field(1_000, description="events of one request")
    max_batch_requests: PositiveInt = Field(256, description="requests in one batch request")
    max_batch_rows: PositiveInt = Field(2_048, description="beams of all requests that are decoded together")
    batch_wait_ms: float = Field(1.0, ge=0, description="milliseconds that a lone request waits for company")
    context_cache_mb: NonNegativeInt = Field(
        0, description="MiB of encoded histories that are kept for who asks again with the same; 0 keeps none"
    )
    precision: Precision | None = Field(
        None, description="of the weights: float32, bfloat16, int8 or float8; the bundle's own where null"
    )
    max_waiting: PositiveInt = Field(512, description="requests in line, and changes; more are refused")
    max_requests_per_s: PositiveFloat | None = Field(
        None,
        description="requests a second of one API key, or of all together without keys; a batch counts as what it "
        "holds; beyond it 429; null for as many as come",
    )
    deadline_ms: PositiveFloat = Field(
        2_000.0, description="milliseconds in line after which a request is refused; at once where they are foreseen"
    )

    def check(self, request: RecommendRequest) -> None:
        """Refuse a request beyond the limits.

        Raises:
            ServingError: names the field, what was found and what is allowed.
        """
        chosen = request.filter
        num_values = 0 if chosen is None else len(chosen.items or ()) + sum(map(len, chosen.columns.values()))
        bounds = (
            ("history", len(request.history or ()), self.max_history_items, " items"),
            ("exclude", len(request.exclude), self.max_excluded_items, " items"),
            ("filter", num_values, self.max_filter_values, " items and values"),
            ("k", request.k, self.max_k, ""),
            ("beams", request.beams or 0, self.max_beams, ""),
        )
        for name, found, most, unit in bounds:
            if found > most:
                raise ServingError(f"{name}: found {found}{unit}, expected at most {most}.")
        if request.beams is not None and request.k > request.beams:
            raise ServingError(
                f"beams: found {request.beams} for k = {request.k}, expected at least k. "
                "Raise beams, lower k, or leave beams out."
            )
