"""Painting: arithmetic on colours against numpy's own, surroundings, samples and coats."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from synthetic import colours, fur, paint
from synthetic.animal import TO_CAMERA, turned
from synthetic.photograph import Light
from synthetic.scene import SUPERSAMPLE, _samples
from synthetic.surface import facing, on_faces, unit
from synthetic.writer import _archive


@pytest.mark.parametrize("shape", [(), (5,), (4, 7), (0, 6), (0,)])
def test_colours_are_mixed_as_by_numpy(shape):
    rng = np.random.default_rng(0)
    level, image, other = (rng.random((*shape, *end), np.float32) for end in ((), (3,), (3,)))
    colour = rng.random(3, np.float32)
    level = np.asarray(level)
    for a, b in ((image, other), (colour, other), (image, colour), (colour, colour[::-1])):
        a = np.broadcast_to(a, image.shape) if shape == () else a
        expected = a + level[..., None] * (b - a)
        np.testing.assert_array_equal(colours.mix(a, b, level), expected)
    if shape:
        np.testing.assert_array_equal(colours.tint(colour, level), level[..., None] * colour)
        np.testing.assert_array_equal(colours.through(colour, image), image * colour)
        np.testing.assert_array_equal(colours.thrice(level) * image, level[..., None] * image)


def test_grain_is_white_noise_that_differs_from_place_to_place():
    rng = np.random.default_rng(0)
    first, second = colours.grain(rng, 300, 420), colours.grain(rng, 300, 420)
    for field in (first, second):
        assert field.shape == (300, 420)
        assert abs(field.mean()) < 0.01 and abs(field.std() - 1) < 0.01
        neighbours = np.corrcoef(field[:, 1:].ravel(), field[:, :-1].ravel())[0, 1]
        assert abs(neighbours) < 0.01
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    assert colours.grain(rng, colours.GRAIN, colours.GRAIN).shape == (colours.GRAIN,) * 2


def test_a_wall_ends_where_the_ground_begins(monkeypatch):
    """Ground green, wall blue, no things: each is where it belongs, whatever the horizon."""
    monkeypatch.setattr(paint, "paint_thing", lambda *a: None)

    def flat(colour, rows):
        return np.broadcast_to(np.float32(colour), (rows, 90, 3)).copy()

    def ground(rng, height, width, horizon, top):
        seen["horizon"] = horizon
        return flat((0, 1, 0), height - top)

    def step(rows, soft):
        seen["soft"] = soft
        return colours.step(rows, soft)

    seen: dict[str, float] = {}
    monkeypatch.setattr(paint, "step", step)

    monkeypatch.setattr(paint, "paint_ground", ground)
    monkeypatch.setattr(paint, "paint_wall", lambda rng, height, width: flat((0, 0, 1), height))
    monkeypatch.setattr(paint.cv2, "GaussianBlur", lambda image, *a: image)
    light = Light(np.ones(3), *(np.ones(3, np.float32) for _ in range(3)))
    for i, foot in enumerate([-500, -3, 0, 1, 20, 40, 63, 64, 90, 900]):
        rng = np.random.default_rng(i)
        xy = np.array([[10.0, foot - 2.0], [60.0, foot]])
        image = paint.paint_background(rng, xy, (64, 90), np.array([0, 1.0, 0]), light)
        assert image.shape == (64, 90, 3) and np.isfinite(image).all()
        assert image[..., 0].max() == 0 and np.ptp(image, axis=1).max() == 0
        share = image[:, 0, 1] / image[:, 0].sum(1)  # of the ground in each row
        expected = np.ones(64)
        if seen["horizon"] > 0:
            expected = colours.step(np.arange(64) - seen["horizon"], seen["soft"])
        np.testing.assert_allclose(share, expected, atol=1e-5)


def test_a_thing_is_painted_inside_its_outline_and_returns_where():
    for i in range(20):
        rng = np.random.default_rng(i)
        image = np.full((50, 70, 3), 5.0, np.float32)
        low = rng.uniform(-30, 60, 2)
        high = low + rng.uniform(1, 60, 2)
        square = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
        where = paint.paint_thing(rng, image, square, 1)
        x, y = np.meshgrid(np.arange(70), np.arange(50))
        deep = (x > low[0] + 2) & (x < high[0] - 2) & (y > low[1] + 2) & (y < high[1] - 2)
        far = (x < low[0] - 2) | (x > high[0] + 2) | (y < low[1] - 2) | (y > high[1] + 2)
        assert (where[deep] == 1).all() and (where[far] == 0).all()
        assert (image[far] == 5).all() and (image[deep] < 2).all()


def test_the_first_sample_of_each_covered_pixel_is_taken():
    rng, s = np.random.default_rng(0), SUPERSAMPLE
    face = rng.integers(-1, 1, (6 * s, 9 * s)) * 7  # -7 or 0: half are not covered
    pixel, sample, cover = _samples(face)
    expected = []
    for row in range(6):
        for column in range(9):
            own = [(row * s + i, column * s + j) for i in range(s) for j in range(s)]
            covered = [place for place in own if face[place] >= 0]
            assert cover[row, column] == len(covered) / s**2
            if covered:
                number = covered[0][0] * 9 * s + covered[0][1]
                expected.append((row * 9 + column, number))
    assert list(zip(pixel.tolist(), sample.tolist(), strict=True)) == expected


def test_faces_that_turn_outwards_are_those_in_counterclockwise_order():
    plane = np.array([[0, 0, 5], [1, 0, 5], [0, 1, 5], [1, 1, 5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 1], [1, 3, 2], [3, 1, 2], [0, 0, 1]])
    right, up = (plane[faces[:, k], :2] - plane[faces[:, 0], :2] for k in (1, 2))
    area = right[:, 0] * up[:, 1] - right[:, 1] * up[:, 0]
    outside = facing(plane, faces)
    assert outside.tolist() in (faces[area > 0].tolist(), faces[area < 0].tolist())
    assert len(outside) == 2
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    weight = np.float32([[0.5, 0.25, 0.25]])
    found = on_faces(values, faces[:1], weight)
    np.testing.assert_allclose(found, [weight[0] @ values[faces[0]]])


def test_vectors_shorter_than_the_least_stay_short():
    vectors = np.array([[3.0, 0, 4], [0, 1e-7, 0], [0, 0, 0]])
    np.testing.assert_allclose(unit(vectors), [[0.6, 0, 0.8], [0, 0.1, 0], [0, 0, 0]])
    np.testing.assert_allclose(unit(vectors, 1e-12)[1], [0, 1, 0])


def test_a_tilt_in_the_world_is_turned_into_the_camera():
    rng = np.random.default_rng(0)
    for size in (0.0, 1e-4, 1.0, 3.1):
        tilt = rng.standard_normal(3)
        tilt *= size / np.linalg.norm(tilt)
        world = TO_CAMERA @ Rotation.random(random_state=3).as_matrix()
        world[:, 0] *= np.sign(np.linalg.det(world))
        expected = world @ Rotation.from_rotvec(tilt).as_matrix()
        found = Rotation.from_rotvec(turned(world, tilt)).as_matrix()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_tile_of_fur_repeats_and_is_read_by_column_and_row():
    tile = np.arange(fur.TILE**2, dtype=np.float32).reshape(fur.TILE, fur.TILE)
    flow = np.array([[3.2, 5.9], [fur.TILE + 3.0, 5.0], [-1.0, 0.0]], np.float32)
    found = fur.strands(tile, flow, np.array([0, 0]))
    assert found.tolist() == [tile[5, 3], tile[5, 3], tile[0, fur.TILE - 1]]
    colour = np.stack([tile, tile + 1, tile + 2], -1)
    assert fur.strands(colour, flow, np.array([1, 2]))[0].tolist() == colour[7, 4].tolist()


def test_ground_truth_is_written_as_numpy_writes_it(tmp_path):
    arrays = {"verts": np.random.default_rng(0).random((9, 3)), "scale": np.float32(0.5)}
    (tmp_path / "whole.npz").write_bytes(_archive(arrays))
    np.savez(tmp_path / "expected.npz", **arrays)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()
