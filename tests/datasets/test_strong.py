"""Strong changes: each image follows its own random numbers, labels stay."""

import torch

from datasets import build_dataset, train_val
from datasets.strong import NUM_DRAWS, strong_change
from tests.datasets.small_set import make_entry, write_set


def test_an_image_follows_its_own_draws_alone():
    torch.manual_seed(0)
    images, draws = torch.randn(6, 3, 40, 40), torch.rand(6, NUM_DRAWS)
    together = strong_change(images, draws)
    assert together.isfinite().all()
    for i in range(6):
        alone = strong_change(images[i : i + 1], draws[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    assert (together - images).flatten(1).abs().mean(1).min() > 0.01
    assert not torch.allclose(strong_change(images, torch.rand(6, NUM_DRAWS)), together)


def test_draws_follow_seed_epoch_and_image_and_only_training_has_them(tmp_path):
    write_set(tmp_path, [make_entry(i) for i in range(6)], {"train": range(5), "val": [5]})
    sets = [train_val("stanford", tmp_path, strong=True, seed=seed) for seed in (3, 3, 4)]
    draws = [s.train[1]["strong_draws"] for s in sets]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    sets[0].train.set_epoch(1)
    assert not torch.equal(sets[0].train[1]["strong_draws"], draws[0])
    assert "strong_draws" not in sets[0].val[0]
    # other changes are as without
    plain = build_dataset("stanford", tmp_path, "train", augment=True, flip=True, seed=3)
    strong = build_dataset(
        "stanford", tmp_path, "train", augment=True, flip=True, strong=True, seed=3
    )
    assert torch.equal(plain[1]["image"], strong[1]["image"])
