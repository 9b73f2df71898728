"""How much one request may ask for."""

from pydantic import Field, PositiveInt

from onerec.errors import ServingError
from onerec.serving.schema import RecommendRequest
from tokenizer.settings import Settings


class Limits(Settings):
    """Bounds on a request; what is beyond them is refused, never cut."""

    max_k: PositiveInt = Field(100, description="items returned")
    max_beams: PositiveInt = Field(512, description="prefixes kept in the search")
    max_history_items: PositiveInt = Field(10_000, description="items of a history")
    max_excluded_items: PositiveInt = Field(10_000, description="items in `exclude`")
    max_body_bytes: PositiveInt = Field(1_048_576, description="bytes of a request's body")

    def check(self, request: RecommendRequest) -> None:
        """Refuse a request beyond the limits.

        Raises:
            ServingError: names the field, what was found and what is allowed.
        """
        bounds = (
            ("history", len(request.history), self.max_history_items, " items"),
            ("exclude", len(request.exclude), self.max_excluded_items, " items"),
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
