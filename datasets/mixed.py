"""Several data sets as one, drawn by weights."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.utils.data import Dataset

from .labelled import LabelledImages


def parse_mix(text: str) -> dict[str, float]:
    """`dog_pose:0.4,oxford_pet:0.2` as weights by name, in that order.

    Raises:
        ValueError: the text is not of this form, a name comes twice or a weight is not positive.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = float("nan")
        if not name or name in weights or not 0 < weight < float("inf"):
            raise ValueError(f"'{part}' in '{text}', expected NAME:WEIGHT, each name once")
        weights[name] = weight
    return weights


class Mixed(Dataset):
    """Samples of several data sets; an epoch has as many as they have together.

    Which data set each sample comes from is drawn with the weights, its image without repeats until
    every image of that data set was drawn; both follow from (seed, epoch) alone. Where some have
    ground truth, the others' is 0 and `has_truth` tells them apart.
    """

    def __init__(
        self, datasets: Mapping[str, LabelledImages], weights: Mapping[str, float], seed=0
    ):
        """Mixes opened data sets.

        Args:
            datasets: by name.
            weights: by the same names, above 0; fractions of the samples once divided by their sum.
            seed: of the draws.
        """
        if set(datasets) != set(weights):
            raise ValueError(f"weights of {sorted(weights)}, expected {sorted(datasets)}")
        self.datasets = [datasets[name] for name in weights]
        total = sum(weights.values())
        self.fractions = [weight / total for weight in weights.values()]
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._plan: tuple[int, np.ndarray] | None = None
        known = [dataset for dataset in self.datasets if dataset.has_ground_truth]
        like = known[0][0] if known else {}
        self._no_truth = {
            key: torch.zeros_like(value)
            for key, value in like.items()
            if key.startswith("gt_") or key == "has_truth"
        }

    @property
    def has_ground_truth(self) -> bool:
        """Whether some of the samples carry ground truth."""
        return bool(self._no_truth)

    @property
    def num_fitted(self) -> int:
        """Number of images that have a good fit."""
        return sum(dataset.num_fitted for dataset in self.datasets)

    @property
    def excluded(self) -> int:
        """Number of unusable entries left out."""
        return sum(dataset.excluded for dataset in self.datasets)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of this epoch."""
        self._epoch.fill_(epoch)
        for dataset in self.datasets:
            dataset.set_epoch(epoch)

    def plan(self) -> np.ndarray:
        """What this epoch draws: (N, 3), the data set, position in it, how often before."""
        epoch = int(self._epoch)
        if self._plan is None or self._plan[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            which = rng.choice(len(self.datasets), len(self), p=self.fractions)  # (N,)
            items, times = np.empty_like(which), np.empty_like(which)
            for k, dataset in enumerate(self.datasets):
                places = np.flatnonzero(which == k)
                rounds = -(-len(places) // len(dataset))
                order = [rng.permutation(len(dataset)) for _ in range(rounds)]
                items[places] = np.concatenate([*order, []])[: len(places)]
                times[places] = np.arange(len(places)) // len(dataset)
            self._plan = epoch, np.stack([which, items, times], 1)
        return self._plan[1]

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)

    def __getitem__(self, item: int) -> dict:
        which, place, times = map(int, self.plan()[item])
        return self._no_truth | self.datasets[which].sample(place, times)
