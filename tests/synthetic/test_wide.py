"""The wide preset: exact labels, poses that stay outside the body, a range of views and breeds."""

import filecmp
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from datasets.annotations import read_mask
from render import coverage, rasterize
from smal_model import SMAL, joints, priors
from synthetic import breeds, fur, motion, props, wide
from synthetic.animal import TO_CAMERA, Studio
from synthetic.presets import PRESETS
from synthetic.skeleton import LEGS
from synthetic.surface import facing, vertex_normals
from synthetic.writer import SETTINGS_FILE, main, make_data, write_images
from util.camera import DISTANCE
from util.errors import InputError

from .test_body import winding
from .test_writer import images, on_photo

NUM_IMAGES = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide") / "data"
    assert make_data(folder, NUM_IMAGES, seed=5, num_workers=1, preset="wide")
    return folder


@pytest.fixture(scope="module")
def studio(data):
    return Studio(data / "smal")


@pytest.fixture(scope="module")
def drafts(studio):
    return [wide.draw_wide(np.random.default_rng((9, i)), studio) for i in range(400)]


def test_the_narrow_presets_lack_one_thing_each(studio, monkeypatch):
    seen: list[float] = []
    kinds: set[str] = set()
    turns = wide.draw_front(np.random.default_rng(0), None)
    assert np.allclose(turns[0] @ turns[0].T, np.eye(3)) and np.linalg.det(turns[0]) > 0
    real = wide.draw_pose

    def look(rng, studio, shape, breed, kind, to_camera):
        kinds.add(kind)
        seen.append(abs(to_camera))
        return real(rng, studio, shape, breed, kind, to_camera)

    monkeypatch.setattr(wide, "draw_pose", look)
    found = {}
    for name, preset in PRESETS.items():
        if name != "plain":
            seen.clear(), kinds.clear()
            drawn = [preset.draw(np.random.default_rng((3, i)), studio) for i in range(60)]
            found[name] = max(seen), set(kinds), {draft.breed for draft in drawn}
    most, every, names = found["wide"]
    assert most > 2.5 and len(every) > 8 and len(names) > 15
    most, every, names = found["wide_front"]
    assert most <= 1.5 and len(every) > 8 and len(names) > 15
    most, every, names = found["wide_upright"]
    assert most > 2.5 and every == {"standing", "walking", "trotting"} and len(names) > 15
    most, every, names = found["wide_retriever"]
    assert most > 2.5 and len(every) > 8 and names == {"retriever"}


def test_keypoints_are_the_projected_joints(data):
    for entry, truth, _ in images(data):
        labels = np.array(entry["joints"])[:20]
        wanted, _ = on_photo(truth, truth["joints"][list(joints.KEYPOINT_JOINTS)])
        visible = labels[:, 2] > 0
        np.testing.assert_allclose(labels[visible, :2], (wanted - 0.5)[visible], atol=4e-3)
        assert (labels[~visible] == 0).all()


def test_masks_are_the_mesh_and_tips_of_fur(data, studio):
    whole = 0
    for entry, truth, _ in images(data):
        mask, size = read_mask(entry).astype(bool), (entry["img_width"], entry["img_height"])
        xy, depth = on_photo(truth, truth["verts"])
        plane = np.stack([2 * xy[:, 0] / size[0] - 1, 1 - 2 * xy[:, 1] / size[1], depth], 1)
        plane = torch.from_numpy(plane.astype(np.float32))[None]
        mesh = coverage(plane, studio.smal.faces, size[::-1])[0].numpy() >= 0.5
        assert (mask & mesh).sum() > 0.5 * mesh.sum()
        beyond = cv2.distanceTransform((~mesh).astype(np.uint8), cv2.DIST_L2, 5)[mask]
        assert beyond.max() < 0.25 * truth["crop_square"][2]
        assert (mask & ~mesh).sum() < 0.4 * mesh.sum()
        whole += (mesh & ~mask).sum() <= 3
    assert whole > NUM_IMAGES / 2  # the rest is behind something


def test_ground_truth_is_the_layers_output(data):
    smal = SMAL(data / "smal")
    for _, truth, _ in images(data):
        names = ("betas", "pose", "trans", "del_v")
        given = {k: torch.from_numpy(truth[k].astype(np.float32))[None] for k in names}
        with torch.inference_mode():
            out = smal(**given)
        np.testing.assert_allclose(out.verts[0], truth["verts"], atol=4e-4)  # del_v is rounded
        np.testing.assert_allclose(out.joints[0], truth["joints"], atol=4e-4)


def test_same_seed_and_files_give_the_same_bytes(data, photographs, tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        shutil.copytree(data / "smal", tmp_path / name / "smal")
        write_images(tmp_path / name, 20, 3, workers, "wide", photographs)
    files = [
        str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*") if p.is_file()
    ]
    assert len(files) > 45
    same, other, missing = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", files, False)
    assert (len(same), other, missing) == (len(files), [], [])


def test_faces_that_turn_away_are_behind_others(studio, drafts):
    """What is seen of a closed mesh are its faces that turn to the viewer, but in a few folds."""
    for animal in studio.place(drafts[:12], PRESETS["wide"].rounds):
        plane, faces = torch.tensor(animal.plane)[None], studio.smal.faces
        whole = rasterize(plane, faces, (200, 200))
        front = torch.from_numpy(facing(animal.plane, studio.faces))
        assert 0.3 < len(front) / len(faces) < 0.7
        seen = rasterize(plane, front, (200, 200))
        covered = whole.face[0] >= 0
        assert ((seen.face[0] >= 0) == covered).float().mean() > 0.9995
        same = (seen.depth[0] - whole.depth[0]).abs() < 1e-4
        assert same[covered].float().mean() > 0.98


def test_limbs_stay_outside_the_body(studio):
    depths = []
    for i in range(300):
        rng = np.random.default_rng((1, i))
        breed = breeds.draw_breed(rng)[1]
        shape, kind = breeds.draw_shape(rng, breed), list(motion.KINDS)[i % len(motion.KINDS)]
        angles = wide.draw_pose(rng, studio, shape, breed, kind, rng.uniform(-3, 3))
        depths.append(studio.capsules.depth(angles, shape))
    assert np.mean(np.array(depths) <= wide.DEPTH) > 0.97 and max(depths) < 3 * wide.DEPTH


def test_the_check_finds_a_leg_in_the_trunk(studio):
    rest, shape = np.zeros((35, 3)), np.zeros(27)
    assert studio.capsules.depth(rest, shape) == 0
    for leg in LEGS:
        bent = rest.copy()
        bent[leg[0], 0] = 0.9 * (
            -1 if leg in (LEGS[0], LEGS[2]) else 1
        )  # inwards, across the other
        bent[leg[1], 1] = 2.2 if leg[0] < joints.NECK else -2.2  # folded up into the belly
        assert studio.capsules.depth(bent, shape) > 2 * wide.DEPTH


def test_skin_of_the_feet_is_outside_the_mesh(studio, drafts):
    faces, weights = studio.faces, studio.smal.weights.numpy()
    lower = [j for leg in LEGS for j in leg[2:]]
    feet = np.flatnonzero(weights[:, lower].sum(1) > 0.9)[::9]
    inside = []
    for draft in drafts[:24]:
        betas, pose = (torch.tensor(a[None]).float() for a in (draft.betas, draft.pose))
        with torch.inference_mode():
            verts = studio.smal(betas, pose).verts[0].double().numpy()
        # Outside the mesh, unless the skin is deeper than that in another part.
        normals = vertex_normals(verts, faces, studio.corner_sums)
        probes = verts[feet] + 1.5 * wide.DEPTH * normals[feet]
        inside.append(np.mean(winding(probes, verts, faces) > 0.5))
    assert np.mean(inside) < 0.04


def test_views_distances_and_sizes_are_covered(drafts):
    up = np.array([d.up for d in drafts])
    raised = np.arcsin(np.clip(-up[:, 2], -1, 1))  # of the camera over the horizon
    assert raised.min() < -0.1 and raised.max() > 1.0 and 0.1 < np.median(raised) < 0.5
    away = np.array([d.depth + DISTANCE for d in drafts])
    assert wide.NEAR <= away.min() < 6 and 20 < away.max() <= wide.FAR
    turned = []
    for i in range(4000):
        world, to_camera = wide.draw_view(np.random.default_rng(i), None)
        viewer = world.T @ np.array([0, 0, -1.0])  # towards the camera, in the animal's axes
        if abs(viewer[2]) < 0.6:
            off = np.arctan2(viewer[1], viewer[0]) - to_camera
            assert abs(np.angle(np.exp(1j * off))) < 0.35
        turned.append(to_camera)
    octants = np.histogram(np.mod(turned, 2 * np.pi), 8, (0, 2 * np.pi))[0] / len(turned)
    assert octants.min() > 0.05 and octants.max() < 0.35
    assert np.allclose(TO_CAMERA @ TO_CAMERA.T, np.eye(3))


def test_priors_are_those_of_the_preset(data, drafts, synthetic_body):
    pose, betas = (
        torch.tensor(np.stack([getattr(d, name) for d in drafts])).float()
        for name in ("pose", "betas")
    )
    terms = []
    for folder in (data, synthetic_body):
        smal = SMAL(folder / "smal")
        shape = priors.shape_prior("smal", smal, folder)(betas)
        terms.append((priors.pose_prior("smal", folder)(pose), shape))
        assert (smal.template == SMAL(data / "smal").template).all()  # the body is the same
    (pose_own, shape_own), (pose_plain, shape_plain) = terms
    assert pose_own < 0.7 * pose_plain and shape_own < 0.7 * shape_plain


def test_every_kind_of_pose_differs_within_and_from_the_others(studio):
    means, spreads = {}, {}
    for kind in motion.KINDS:
        poses = np.stack(
            [
                motion.draw_motion(np.random.default_rng(i), kind, 0.0, breeds.HANG, breeds.LEVEL)
                for i in range(60)
            ]
        )
        means[kind], spreads[kind] = poses.mean(0), poses.std(0)
        assert (spreads[kind][[7, 8, 17, 18], 1] > 0.05).all(), kind
    sitting, lying, bow = (means[k][0, 1] for k in ("sitting", "lying", "play bow"))
    assert sitting < -0.4 and abs(lying) < 0.1 and bow > 0.3  # the trunk's pitch
    assert spreads["on its side"][0, 0] > 1.2  # either side
    heads = Rotation.from_rotvec(means["sitting"][16]).magnitude()
    assert heads < 1.0


def test_breeds_have_the_proportions_they_are_known_for(studio):
    directions = studio.smal.shapedirs.numpy().reshape(27, -1, 3)
    regressor = studio.smal.J_regressor.numpy()

    def measure(name):
        shapes = [
            breeds.draw_shape(np.random.default_rng(i), breeds.BREEDS[name]) for i in range(40)
        ]
        verts = studio.rest + np.tensordot(np.mean(shapes, 0), directions, 1)
        place = regressor @ verts
        withers = verts[np.abs(verts[:, 0] - 0.26) < 0.05, 2].max() - verts[:, 2].min()
        muzzle = verts[:, 0].max() - verts[studio.smal.landmarks[4], 0]  # from the eye
        return (place[8, 2] - verts[:, 2].min()) / withers, muzzle

    named = [measure(n) for n in ("pointer", "dachshund", "sighthound", "pug")]
    elbow, muzzle = zip(*named, strict=True)
    assert 0.44 < elbow[0] < 0.60 and elbow[1] < 0.40 and elbow[2] > 0.45
    assert muzzle[3] < 0.6 * muzzle[0] < 0.75 * muzzle[2]


def test_clothes_leave_legs_and_face_bare(studio):
    weights, worn = studio.smal.weights.numpy(), 0
    feet = weights[:, [j for leg in LEGS for j in leg[2:]]].sum(1) > 0.9
    face = (weights[:, [joints.HEAD, joints.MOUTH]].sum(1) > 0.9) & (studio.rest[:, 0] > 0.7)
    for i in range(200):
        for layer in props.draw_clothes(np.random.default_rng(i), studio):
            covered = layer.score > 0
            assert not covered[feet].any() and not covered[face].any()
            assert covered.mean() < 0.5
            worn += covered.any()
    assert 60 < worn < 160


def test_fur_grows_outwards_no_farther_than_it_is_long():
    rgb, alpha = np.zeros((60, 60, 3), np.float32), np.zeros((60, 60), np.float32)
    alpha[20:40, 20:40], rgb[20:40, 20:40] = 1, (0.2, 0.4, 0.6)
    before, length = alpha.copy(), np.where(alpha > 0, np.float32(6), 0)
    fur.ragged_outline(np.random.default_rng(0), rgb, alpha, length, (0, 0))
    assert (alpha >= before).all() and (alpha[before == 1] == 1).all()
    grown = (alpha >= 0.5) & (before == 0)
    distance = cv2.distanceTransform((before == 0).astype(np.uint8), cv2.DIST_L2, 5)
    assert 60 < grown.sum() and distance[grown].max() <= 8
    np.testing.assert_allclose(rgb[grown], np.full((grown.sum(), 3), (0.2, 0.4, 0.6)), atol=0.35)
    bald = alpha.copy()
    fur.ragged_outline(np.random.default_rng(0), rgb, bald, np.zeros_like(length), (0, 0))
    assert (bald == alpha).all()


def test_settings_name_the_preset_and_the_photographs(data, photographs, tmp_path, capsys):
    assert json.loads((data / SETTINGS_FILE).read_text())["preset"] == "wide"
    assert not make_data(data, NUM_IMAGES, seed=5, preset="wide")
    with pytest.raises(InputError, match="other settings"):
        make_data(data, NUM_IMAGES, seed=5)
    with pytest.raises(InputError, match="other settings"):
        make_data(data, NUM_IMAGES, seed=5, preset="wide", backgrounds=photographs)
    with pytest.raises(InputError, match="takes no backgrounds"):
        make_data(tmp_path / "new", 20, backgrounds=photographs)
    with pytest.raises(InputError, match="holds no photographs"):
        make_data(tmp_path / "new", 20, preset="wide", backgrounds=tmp_path / "nowhere")
    assert not (tmp_path / "new").exists()
    options = ["--num_images", str(NUM_IMAGES), "--seed", "5", "--preset", "wide"]
    main(["--data_dir", str(data), *options])
    assert "nothing was made" in capsys.readouterr().out
