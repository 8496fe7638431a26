"""The embedded body: a dog in SMAL's file layout, made from code alone.

Mesh, skin, joint regressor, shape directions and priors are computed; no licensed file is read.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from smal_model import joints
from smal_model.body_files import FAMILY_FILE, MODEL_FILE, NUM_BETAS, SYMMETRY_FILE
from smal_model.hierarchy import HIERARCHY_FILE, MeshHierarchy
from smal_model.priors import POSE_PRIOR_FILES, UNITY_BETAS_FILE
from smal_model.smal import NUM_LOGSCALES
from util.files import atomic_write

from .pose import pose_prior_moments
from .shape import shape_directions, shape_families
from .skeleton import CHIN, EAR_TIP, EYE, NOSE, PARENTS, bones, mirror_joints, norm, rest_joints
from .surface import build_mesh, ear_frame, undirected_edges


def skin_weights(verts, faces, symmetry) -> np.ndarray:
    """Skinning weights: nearness to each bone in units of its flesh, spread like heat.

    Args:
        verts: (V, 3), the template before it is centred.
        faces: (F, 3).
        symmetry: (V,) index of each vertex's mirror image.

    Returns:
        (V, J), rows that sum to 1, the four largest of each vertex (and their equals).
    """
    near, flesh = np.full((len(verts), len(PARENTS)), np.inf), np.zeros(len(PARENTS))
    for joint, a, b, radius_a, radius_b in bones():
        a, b = np.array(a), np.array(b)
        t = np.clip((verts - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        radius = radius_a + (radius_b - radius_a) * t
        near[:, joint] = norm(verts - a - t[:, None] * (b - a)) / radius
        flesh[joint] = (radius_a + radius_b) / 2
    near -= near.min(1, keepdims=True)
    weights = np.exp(-8 * near)
    weights /= weights.sum(1, keepdims=True)
    edges = undirected_edges(faces)
    length = norm(verts[edges[:, 0]] - verts[edges[:, 1]])
    shape = (len(verts),) * 2
    conductance = scipy.sparse.coo_matrix((1 / length**2, edges.T), shape=shape).tocsr()
    conductance = conductance + conductance.T
    degree = np.asarray((conductance != 0).sum(1)).ravel()
    laplacian = scipy.sparse.diags(np.asarray(conductance.sum(1)).ravel()) - conductance
    # Heat spreads over about a third of the flesh's thickness there.
    time = (0.33 * (weights @ flesh)) ** 2 * 4 / degree
    system = scipy.sparse.eye(len(verts)) + scipy.sparse.diags(time) @ laplacian
    weights = scipy.sparse.linalg.spsolve(system.tocsc(), weights)
    weights = (weights + weights[symmetry][:, mirror_joints()]) / 2
    fourth = np.sort(weights, 1)[:, -4, None]
    weights = np.where(weights >= fourth * (1 - 1e-9), np.maximum(weights - 0.01, 0), 0)
    return weights / weights.sum(1, keepdims=True)


def joint_regressor(verts, weights, symmetry) -> np.ndarray:
    """(J, V) non-negative rows that sum to 1 and reproduce the rest joints: nearest in entropy to a
    Gaussian about each joint. Arguments as in `skin_weights`, which gives `weights`."""
    image, centres = mirror_joints(), rest_joints()
    regressor = np.zeros((len(centres), len(verts)))
    for j, centre in enumerate(centres):
        if image[j] < j:
            regressor[j] = regressor[image[j]][symmetry]
            continue
        family = [j, max(PARENTS[j], 0), *(k for k, p in enumerate(PARENTS) if p == j)]
        own = weights[:, family].sum(1) > 0.4
        if j < joints.FRONT_LEFT_LEG[0]:  # along the spine, all skin round about
            own[:] = True
        distance = np.where(own, norm(verts - centre), np.inf)
        chosen = np.argsort(distance, kind="stable")[:160]
        offset = verts[chosen] - centre
        width = distance[chosen[0]] * 0.5 + 0.02
        prior = -0.5 * (distance[chosen] / width) ** 2
        tilt = np.zeros(3)
        for _ in range(200):  # damped Newton steps on the convex dual
            w = np.exp(prior + offset @ tilt - (prior + offset @ tilt).max())
            w /= w.sum()
            mean = w @ offset
            spread = (offset * w[:, None]).T @ offset - np.outer(mean, mean)
            step = np.linalg.solve(spread + 1e-7 * np.eye(3), mean)
            tilt -= step * min(1, 20 / np.linalg.norm(step))
        regressor[j, chosen] = w
        if image[j] == j:
            regressor[j] = (regressor[j] + regressor[j][symmetry]) / 2
    return regressor


def build_body() -> dict[str, np.ndarray]:
    """The body's tables, named as in SMAL's file.

    Returns:
        `v_template` (V, 3), `f` (F, 3), `shapedirs` (V, 3, K), `posedirs` (V, 3, 9 (J - 1)),
        `J_regressor` (J, V), `weights` (V, J), `kintree_table` (2, J), and besides
        `landmark_vertices` (6,), `mirror_plane_vertices` and `symIdx` (V,).
    """
    verts, faces, symmetry = build_mesh()
    weights = skin_weights(verts, faces, symmetry)
    everywhere = np.arange(len(verts))
    plane = np.flatnonzero(symmetry == everywhere)

    def nearest(point, among):
        return among[norm(verts[among] - np.array(point)).argmin()]

    ear = nearest(np.add(EAR_TIP, 0.02 * ear_frame()[:, 0]), everywhere)
    eye = nearest(EYE, everywhere)
    nose, chin = nearest(NOSE, plane), nearest(CHIN, plane)
    centre = (verts[:, 0].mean() + verts[:, 2].mean()) / 2  # makes the mean of all numbers 0
    return {
        "v_template": verts - np.array([1, 0, 1]) * centre,
        "f": faces.astype(np.uint32),
        "shapedirs": shape_directions(verts, faces, weights),
        "posedirs": np.zeros((len(verts), 3, 9 * (len(PARENTS) - 1)), np.float32),
        "J_regressor": joint_regressor(verts, weights, symmetry),
        "weights": weights,
        "kintree_table": np.array([np.array(PARENTS) % 2**32, np.arange(len(PARENTS))], np.uint32),
        "landmark_vertices": np.array([nose, chin, symmetry[ear], ear, eye, symmetry[eye]]),
        "mirror_plane_vertices": plane,
        "symIdx": symmetry,
    }


def write_body(data_dir, families=None, pose_moments=None) -> None:
    """Writes the body (`smal/`), its priors (`priors/`) and its mesh hierarchy.

    Args:
        data_dir: the folder in which they go.
        families: means (5, K) and covariances (5, K, K) of shape; `shape_families` where None.
        pose_moments: as `pose_prior_moments` gives them, which is called where None.
    """
    data_dir = Path(data_dir)
    body = build_body()
    means, covariances = families or shape_families()
    mean_pose, factor = pose_moments or pose_prior_moments()
    n = NUM_BETAS
    betas_mean = np.zeros(n + NUM_LOGSCALES + 1)
    betas_cov = np.diag(np.r_[np.ones(n), np.full(NUM_LOGSCALES, 0.1**2), 1])
    betas_mean[:n], betas_cov[:n, :n] = means[1, :n], covariances[1, :n, :n]
    tables: dict[str, dict] = {
        f"smal/{MODEL_FILE}": {k: v for k, v in body.items() if k != "symIdx"},
        f"smal/{FAMILY_FILE}": {"cluster_means": means, "cluster_cov": covariances},
        f"smal/{SYMMETRY_FILE}": {"symIdx": body["symIdx"]},
        "priors/" + UNITY_BETAS_FILE.removesuffix(".npz"): {"mean": betas_mean, "cov": betas_cov},
    }
    for stem in POSE_PRIOR_FILES.values():
        tables[f"priors/{stem}"] = {"mean_pose": mean_pose, "pic": factor}
    for stem, table in tables.items():
        with atomic_write(data_dir / f"{stem}.npz") as temporary:
            np.savez_compressed(temporary, **table)
    hierarchy = MeshHierarchy.build(body["v_template"], body["f"].astype(np.int64), (4, 4, 4, 4))
    hierarchy.save(data_dir / HIERARCHY_FILE)
