"""Strong changes: each image follows its own random numbers, labels stay."""

import torch

from datasets import build_dataset, train_val
from datasets.strong import NUM_DRAWS, PATCHES, _covered, strong_change
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


def test_covered_parts_are_those_of_a_loop_over_images_and_patches():
    torch.manual_seed(1)
    images, draws = torch.randn(20, 3, 48, 48), torch.rand(20, NUM_DRAWS)
    expected = images.clone()
    for image, (changed, row) in enumerate(zip(expected, draws.numpy(), strict=True)):
        for patch in range(PATCHES if row[10] < 0.6 else 0):
            a, b, c, d = row[11 + 4 * patch : 15 + 4 * patch]
            height, width = (int(48 * (0.06 + 0.22 * v)) for v in (a, 1 - a * b))
            top, left = int(c * (48 - height)), int(d * (48 - width))
            other_top, other_left = int(b * (48 - height)), int(a * (48 - width))
            piece = images[image, :, other_top:, other_left:][:, :height, :width]
            changed[:, top : top + height, left : left + width] = piece.flip(-1)
    assert torch.equal(_covered(images, draws), expected)
    assert (expected != images).any()


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
