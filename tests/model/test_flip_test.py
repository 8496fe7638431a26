"""The flip test: keypoints and outline of an image and of its mirror image together."""

import pytest
import torch

from model import CoarseToFine
from model.keypoint_maps import mean_of_maps
from smal_model import SMAL, MeshHierarchy
from smal_model.joints import KEYPOINT_NAMES, MIRRORED


def test_left_and_right_change_places():
    names = [name.replace("left", "?").replace("right", "left") for name in KEYPOINT_NAMES]
    names = [name.replace("?", "right") for name in names]
    assert [KEYPOINT_NAMES.index(name) for name in names] == list(MIRRORED)


def test_the_mean_is_that_of_the_distributions():
    a, b = torch.randn(2, 3, 20, 5, 6)
    expected = (a.flatten(2).softmax(-1) + b.flatten(2).softmax(-1)) / 2
    found = mean_of_maps(a, b).flatten(2)
    torch.testing.assert_close(found.exp(), expected)


@pytest.fixture(scope="module")
def network(synthetic_body):
    smal = SMAL(synthetic_body / "smal")
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    torch.manual_seed(0)
    options = {"keypoint_maps": True, "outline": True, "img_res": 64, "num_channels": 16}
    return CoarseToFine(smal, hierarchy, "resnet18", **options).eval()


def test_a_mirrored_image_shows_the_mirrored_keypoints(network):
    """Whatever the weights are; and the body is posed by the mean, the coarse answer is not."""
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out, other = network(image), network(image.flip(-1))
        alone = network.meshnet(image)
        network.flip_test = False
        without = network(image)
        network.flip_test = True
        training = network.train()(image)
        network.eval()
    likely = mean_of_maps(other.keypoints.maps, other.keypoints.maps)
    swapped = likely[:, list(MIRRORED)].flip(-1)  # left paws are right paws there
    torch.testing.assert_close(out.keypoints.maps, swapped, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.outline, other.outline.flip(-1), rtol=1e-4, atol=1e-4)
    assert torch.equal(out.coarse.verts, alone.coarse.verts)
    assert torch.equal(without.outline, alone.outline)
    assert (without.reposed.estimate.verts - out.reposed.estimate.verts).abs().max() > 1e-4
    assert training.outline is not None and (training.outline - out.outline).abs().max() > 1e-3
