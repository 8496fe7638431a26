"""The worlds that can be drawn: plain (few views and poses) and wide (as in real photographs)."""

from collections.abc import Callable
from dataclasses import dataclass

from . import breeds, shape
from .animal import draw_plain
from .photograph import photograph
from .pose import pose_prior_moments
from .scene import photograph_wide
from .wide import draw_wide, wide_priors

WIDE_VERSION = 1  # of the wide preset's images: raise it with every change of them


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


PRESETS = {
    "plain": Preset(draw_plain, photograph, 1, tuple(shape.BREEDS), False, plain_priors),
    "wide": Preset(draw_wide, photograph_wide, 4, tuple(breeds.BREEDS), True, wide_priors),
}
