"""Synthetic images: labels, masks and ground truth agree, files keep the layouts, a second run
changes nothing."""

import filecmp
import json
import os
import shutil

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from datasets import build_dataset, check
from datasets.annotations import read_mask
from render import coverage
from smal_model import SMAL, joints
from synthetic import writer
from synthetic.animal import COAT_DEPTH, Studio
from synthetic.photograph import Frame, _label_keypoints
from synthetic.writer import SETTINGS_FILE, SPLITS, main, make_data, write_images
from util.camera import project, to_pixels
from util.errors import InputError
from util.files import lock_folder

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "data"
    assert make_data(folder, NUM_IMAGES, seed=7, num_workers=1)
    return folder


@pytest.fixture(scope="module")
def smal(data):
    return SMAL(data / "smal")


def images(data):
    """(entry, truth, image) of every photograph in StanfordExtra's layout."""
    root = data / "StanfordExtra_v12"
    for entry in json.loads((root / "StanfordExtra_v12.json").read_text()):
        with np.load((root / "Truth" / entry["img_path"]).with_suffix(".npz")) as truth:
            yield entry, dict(truth), cv2.imread(str(root / "Images" / entry["img_path"]))


def on_photo(truth, points):
    """(N, 2) x, y in the photograph, whole at pixel edges, and the depth (N,)."""
    plane = project(torch.from_numpy(points)[None], torch.tensor([[float(truth["scale"])]]))[0]
    left, top, side = truth["crop_square"]
    rows, columns = (to_pixels(plane, 1).double() * side + torch.tensor([top, left])).T
    return np.stack([columns, rows], 1), plane[:, 2].numpy()


def test_keypoints_are_the_projected_joints(data):
    seen = np.zeros(20, int)
    for entry, truth, _ in images(data):
        labels = np.array(entry["joints"])
        assert (
            labels.shape == (24, 3)
            and (labels[20:] == 0).all()
            and set(np.unique(labels[:, 2])) <= {0, 1}
        )
        wanted, _ = on_photo(truth, truth["joints"][list(joints.KEYPOINT_JOINTS)])
        visible = labels[:20, 2] > 0
        np.testing.assert_allclose(labels[:20, :2][visible], (wanted - 0.5)[visible], atol=2e-3)
        assert (labels[:20][~visible] == 0).all()
        inside = (wanted > 0).all(1) & (wanted < (entry["img_width"], entry["img_height"])).all(1)
        assert not (visible & ~inside).any()
        assert visible.sum() >= 4
        seen += visible
    assert (seen > 0.3 * NUM_IMAGES).all()


def test_masks_are_those_of_the_renderer(data, smal):
    unhidden = 0
    for entry, truth, _ in images(data):
        mask, size = read_mask(entry).astype(bool), (entry["img_width"], entry["img_height"])
        xy, depth = on_photo(truth, truth["verts"])
        plane = np.stack([2 * xy[:, 0] / size[0] - 1, 1 - 2 * xy[:, 1] / size[1], depth], 1).astype(
            np.float32
        )
        rendered = coverage(torch.from_numpy(plane)[None], smal.faces, size[::-1])[0].numpy() >= 0.5
        assert (mask & ~rendered).sum() <= 3  # rounding, at the outline
        assert (mask & rendered).sum() > 0.6 * rendered.sum()
        unhidden += (mask ^ rendered).sum() <= 3
        x, y, w, h = entry["img_bbox"]
        rows, columns = np.nonzero(mask)
        slack = 0.04 * max(w, h) + 1
        for found, low, high in ((columns, x, x + w), (rows, y, y + h)):
            assert abs(found.min() - low) <= slack and abs(found.max() + 1 - high) <= slack
    assert unhidden > NUM_IMAGES / 2


def test_ground_truth_is_the_layers_output(data, smal):
    for _, truth, _ in images(data):
        with torch.inference_mode():
            given = {
                k: torch.from_numpy(truth[k].astype(np.float32))[None]
                for k in ("betas", "pose", "trans", "del_v")
            }
            out = smal(**given)
        np.testing.assert_allclose(
            out.verts[0], truth["verts"], atol=2e-4
        )  # the deformation is stored in half precision
        np.testing.assert_allclose(out.joints[0], truth["joints"], atol=2e-4)


def test_deformations_are_a_coat_and_lie_outside_the_shape_space_else(data, smal):
    studio = Studio(data / "smal")
    space = studio.shape_space
    of_coat = space @ studio.long_coat.ravel()  # what the shape space sees of a coat of depth 1
    for _, truth, _ in images(data):
        moved = truth["del_v"].astype(np.float64)
        depth = (space @ moved.ravel()) @ of_coat / (of_coat @ of_coat)
        assert COAT_DEPTH[0] <= depth <= COAT_DEPTH[1]
        moved -= depth * studio.long_coat
        assert np.abs(space @ moved.ravel()).max() < 0.01 * np.linalg.norm(moved)
        size = np.linalg.norm(moved, axis=1)
        assert 0.010 < np.sqrt((size**2).mean()) < 0.040 and size.max() < 0.16
        edge = smal.faces.numpy()[:, :2]
        steps = np.linalg.norm(moved[edge[:, 0]] - moved[edge[:, 1]], axis=1)
        assert np.sqrt((steps**2).mean()) < 0.5 * np.sqrt(
            (size**2).mean()
        )  # smooth from vertex to vertex


def test_photographs_differ_and_are_never_white(data):
    sizes, breeds, means = set(), set(), []
    for entry, _, image in images(data):
        assert image.shape == (entry["img_height"], entry["img_width"], 3)
        assert (image.min(2) == 255).mean() < 0.001
        sizes.add(image.shape)
        breeds.add(entry["img_path"].split("/")[0])
        means.append(image.mean((0, 1)))
    assert len(sizes) == NUM_IMAGES and len(breeds) >= 4
    assert np.std(means, axis=0).min() > 10


def test_splits_divide_the_images(data):
    root = data / "StanfordExtra_v12"
    parts = {s: np.load(root / f"{s}_stanford_StanfordExtra_v12.npy") for s in SPLITS}
    assert sorted(np.concatenate(list(parts.values()))) == list(range(NUM_IMAGES))
    assert all(abs(len(p) - SPLITS[s] * NUM_IMAGES) <= 1 for s, p in parts.items())


@pytest.mark.parametrize("name", ["stanford", "animal_pose"])
def test_data_sets_open_and_pass_the_check(data, smal, name):
    assert check.main(["--dataset", name, "--data_dir", str(data)]) == 0
    dataset = build_dataset(name, data, "test", ground_truth=True)
    assert dataset.excluded == 0
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample["gt_verts"].shape == (smal.num_verts, 3)
        assert sample["gt_joints"].shape == (41, 3)
        assert sample["mask"].max() == 1 and sample["border_mask"].mean() > 0.3
        assert_ground_truth_is_where_the_labels_are(sample)


def assert_ground_truth_is_where_the_labels_are(sample):
    labels = sample["keypoints"].numpy()
    plane = project(sample["gt_joints"][None], sample["gt_scale"][None])[0]
    places = to_pixels(plane)[list(joints.KEYPOINT_JOINTS)].numpy()
    off = np.abs(places - labels[:, :2])[labels[:, 2] > 0]
    # labels are rounded up; a crop about another point than the optical axis is a shift of the body
    assert np.median(off) < 1.5 and off.max() < 6


@pytest.mark.parametrize("changes", [{"augment": True}, {"flip": True}])
def test_ground_truth_follows_the_changes_of_the_crop(data, smal, changes):
    dataset = build_dataset("stanford", data, "train", ground_truth=True, **changes)
    plain = build_dataset("stanford", data, "train", ground_truth=True)
    changed = 0
    for i in range(len(dataset)):
        sample = dataset[i]
        assert_ground_truth_is_where_the_labels_are(sample)
        changed += not torch.allclose(sample["gt_rotations"], plain[i]["gt_rotations"])
        pose = Rotation.from_matrix(sample["gt_rotations"].numpy()).as_rotvec().ravel()
        betas = sample["gt_betas"][None]
        given = [torch.from_numpy(pose[None].astype(np.float32)) for pose in (pose, 0 * pose)]
        ours, rest = (smal(betas, pose) for pose in given)
        gap = (ours.verts - ours.joints[:, :1])[0] - (sample["gt_verts"] - sample["gt_joints"][:1])
        size = (rest.verts - rest.joints[:, :1])[0].norm(dim=1).mean()
        assert gap.norm(dim=1).mean() < 0.1 * size  # what is left is the coat
    assert changed >= len(dataset) // 4


def test_animal_pose_lacks_what_the_real_one_lacks(data):
    for entry in json.loads((data / "animal_pose" / "animal_pose_data.json").read_text()):
        assert all(entry["joints"][k] == [0, 0, 0] for k in (13, 17, 18, 19, 20, 21, 22, 23))


def test_two_runs_give_the_same_bytes(data, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(data / "smal", again / "smal")
    write_images(again, NUM_IMAGES, seed=7, num_workers=2)  # and with other processes
    for folder in ("StanfordExtra_v12", "animal_pose"):
        files = sorted(str(p.relative_to(data)) for p in (data / folder).rglob("*") if p.is_file())
        assert files == sorted(
            str(p.relative_to(again)) for p in (again / folder).rglob("*") if p.is_file()
        )
        assert filecmp.cmpfiles(data, again, files, shallow=False)[1:] == ([], [])


def test_reuses_its_own_folder_and_spares_others(data, tmp_path, capsys):
    written = (data / SETTINGS_FILE).stat().st_mtime_ns
    assert not make_data(data, NUM_IMAGES, seed=7)
    main(["--data_dir", str(data), "--num_images", str(NUM_IMAGES), "--seed", "7"])
    assert "nothing was made" in capsys.readouterr().out
    assert (data / SETTINGS_FILE).stat().st_mtime_ns == written
    with pytest.raises(InputError, match="other settings"):
        make_data(data, NUM_IMAGES, seed=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        make_data(tmp_path / "mine", NUM_IMAGES)
    with pytest.raises(InputError, match="is a file; give a folder"):
        make_data(tmp_path / "mine" / "notes.txt", NUM_IMAGES)
    with pytest.raises(InputError, match="at least 20"):
        make_data(tmp_path / "new", 3)
    for wrong in ({"seed": -1}, {"num_workers": -1}):
        with pytest.raises(InputError, match="-1.*expected 0 or more"):
            make_data(tmp_path / "new", NUM_IMAGES, **wrong)
    with pytest.raises(InputError, match="cannot be made"):
        make_data(tmp_path / "mine" / "notes.txt" / "new")
    with pytest.raises(InputError, match="other settings"):
        main(["--data_dir", str(data), "--seed", "4"])
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
        and len(list(data.parent.iterdir())) == 1
    )


def test_joints_behind_the_animal_are_not_visible():
    """What covers them decides: skin far before them, things in front, the photograph's edge."""
    frame = Frame(100, 80, 0.0, -10.0, 100.0)
    plane = np.zeros((41, 3))
    plane[:, 2] = 1.0  # depth, body units; all in the middle, at column 50, row 40
    nearest, covered = np.full((80, 100), 0.9), np.zeros((80, 100))
    assert _label_keypoints(plane, frame, nearest, covered)[:20, 2].all()
    assert not _label_keypoints(plane, frame, nearest - 0.3, covered).any()  # by 0.4 of a body
    assert not _label_keypoints(plane, frame, nearest, covered + 0.6).any()
    plane[joints.KEYPOINT_JOINTS[3], 1] = -1.5  # below the photograph
    seen = _label_keypoints(plane, frame, nearest, covered)[:20, 2]
    assert seen.tolist() == [float(k != 3) for k in range(20)]


def test_what_a_killed_process_left_is_removed_and_what_another_makes_is_not(tmp_path, monkeypatch):
    names = ".dogs-half-made-abcd1234", ".dogs-half-made-efgh5678", ".dogs-backup01"
    for name in names:
        (tmp_path / name / "smal").mkdir(parents=True)
    (tmp_path / ".dogs-half-made-note").write_text("of the user")

    def stop(*_):
        raise InputError("far enough")

    monkeypatch.setattr(writer, "write_body", stop)
    lock = lock_folder(tmp_path / names[1])
    with pytest.raises(InputError, match="far enough"):
        make_data(tmp_path / "dogs", 20)
    os.close(lock)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == sorted([*names[1:], ".dogs-half-made-note"])


@pytest.mark.parametrize("content", [b'{"num', b"\xff\xfe", None])
def test_a_damaged_note_of_settings_is_named(tmp_path, content):
    note = tmp_path / "dogs" / writer.SETTINGS_FILE
    note.parent.mkdir()
    if content is None:
        note.mkdir()
    else:
        note.write_bytes(content)
    with pytest.raises(InputError, match=r"not empty, and its synthetic\.json cannot be read"):
        writer.make_data(tmp_path / "dogs", 20)
    with pytest.raises(InputError, match="more than 10000000"):
        writer.make_data(tmp_path / "many", 10**12)
