"""The papers' own scaling fits, to stand beside ours; their losses are of other data and do not compare with ours."""

from dataclasses import dataclass

from onerec.scaling.law import Law


@dataclass(frozen=True)
class PublishedLaw:
    """A fit as its paper gives it."""

    name: str
    source: str
    law: Law
    points: tuple[tuple[float, float], ...] = ()
    """(N, L) that the paper gives."""
    size_exponent: float | None = None
    """a in N_best ~ C^a."""
    data_exponent: float | None = None
    """b in D_best ~ C^b."""


ONEREC_V2 = PublishedLaw(
    name="OneRec-V2",
    source="arXiv 2508.20900, dense models",
    law=Law(("N",), 3.13, (3660.0,), (0.489,)),
    points=((1e8, 3.57), (2e8, 3.46), (5e8, 3.33), (1e9, 3.27), (2e9, 3.23), (4e9, 3.20), (8e9, 3.19)),
)
OPEN_ONEREC = PublishedLaw(
    name="OpenOneRec",
    source="arXiv 2512.24762",
    law=Law(("N", "D"), 0.4232, (502.32, 7.02), (0.3325, 0.1865)),
    size_exponent=0.44,
    data_exponent=0.56,
)
PUBLISHED = (ONEREC_V2, OPEN_ONEREC)
