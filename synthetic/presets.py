"""The worlds that can be drawn: plain (few views and poses) and wide (as in real photographs).

The others are the wide one but for one thing, which is narrow; docs/real-dogs.md compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from . import breeds, shape
from .animal import draw_plain
from .motion import KINDS
from .photograph import photograph
from .pose import pose_prior_moments
from .scene import photograph_wide
from .wide import draw_front, draw_wide, wide_priors

WIDE_VERSION = 3  # of the wide preset's images: raise it with every change of them


@dataclass(frozen=True)
class Preset:
    """How animals are drawn and photographed.

    draw: (rng, studio) -> `animal.Draft`. photograph: (rng, studio, animal, photos) -> JPEG, entry
    of the JSON list, ground truth. rounds: see `Studio.place`. breeds: names, in the files' order.
    priors: () -> shape families and pose moments, see `body.write_body`.
    """

    draw: Callable
    photograph: Callable
    rounds: int
    breeds: tuple[str, ...]
    uses_photos: bool
    priors: Callable


def plain_priors() -> tuple[tuple, tuple]:
    """Shape families and pose moments of the plain preset."""
    return shape.shape_families(), pose_prior_moments()


def _upright() -> dict[str, float]:
    """Standing, walking and trotting, in these parts of KINDS."""
    kinds = {name: KINDS[name] for name in ("standing", "walking", "trotting")}
    return {name: part / sum(kinds.values()) for name, part in kinds.items()}


WIDE = Preset(draw_wide, photograph_wide, 4, tuple(breeds.BREEDS), True, wide_priors)
PRESETS = {
    "plain": Preset(draw_plain, photograph, 1, tuple(shape.BREEDS), False, plain_priors),
    "wide": WIDE,
    "wide_front": replace(WIDE, draw=partial(draw_wide, view=draw_front)),
    "wide_upright": replace(WIDE, draw=partial(draw_wide, kinds=_upright())),
    "wide_retriever": replace(WIDE, draw=partial(draw_wide, breeds=("retriever",))),
}
