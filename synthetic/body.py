"""A made-up dog in SMAL's file layout, so that everything can be run where the licensed body is not at hand.

    python -m smal_model.quadruped --data_dir data/synthetic

The template is the zero level of a smooth union of tapered capsules and ellipsoids, polygonised on one half and mirrored. The
skin, the joint regressor, the shape directions and the priors are computed from it. Axes at rest: x towards the head, y to the
animal's left, z up; the ground is near z = -0.55 and the body, tail included, is about 2.1 units long.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from smal_model import joints
from util.files import atomic_write
from smal_model.hierarchy import HIERARCHY_FILE, MeshHierarchy
from smal_model.priors import POSE_PRIOR_FILES, UNITY_BETAS_FILE
from smal_model.body_files import FAMILY_FILE, MODEL_FILE, NUM_BETAS, SYMMETRY_FILE
from smal_model.smal import NUM_LOGSCALES

# ---------------------------------------------------------------- skeleton at rest (left side; the right is its mirror image)
SHOULDER, ELBOW, WRIST, FRONT_FOOT = (0.375, 0.095, 0.03), (0.275, 0.113, -0.15), (0.305, 0.112, -0.395), (0.335, 0.112, -0.49)
HIP, KNEE, HOCK, BACK_FOOT = (-0.43, 0.085, 0.09), (-0.315, 0.113, -0.115), (-0.50, 0.112, -0.325), (-0.47, 0.112, -0.487)
FRONT_TOE, BACK_TOE = (0.42, 0.112, -0.525), (-0.385, 0.112, -0.525)
EAR_BASE, EAR_TIP = (0.632, 0.064, 0.448), (0.655, 0.182, 0.494)
EYE, NOSE, CHIN = (0.772, 0.066, 0.393), (0.95, 0.0, 0.336), (0.875, 0.0, 0.235)
PARENTS = (
    -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 6, 11, 12, 13, 6, 15, 1, 17, 18, 19, 1, 21, 22, 23, 1, 25, 26, 27, 28, 29, 30, 16, 16, 16,
)  # fmt: skip
_TAIL_X, _TAIL_Z = np.linspace(-0.60, -1.10, 7), np.linspace(0.183, 0.158, 7)


def _mirrored(point):
    return (point[0], -point[1], point[2])


def rest_joints() -> np.ndarray:
    """(35, 3) joint centres of the template before it is centred."""
    spine = [(x, 0, z) for x, z in zip((-0.42, -0.40, -0.28, -0.14, 0, 0.14, 0.26), (0.14, 0.14, *[0.15] * 4, 0.16), strict=True)]
    front, back = [SHOULDER, ELBOW, WRIST, FRONT_FOOT], [HIP, KNEE, HOCK, BACK_FOOT]
    neck_head = [(0.42, 0, 0.235), (0.60, 0, 0.36)]
    tail = [(x, 0, z) for x, z in zip(_TAIL_X, _TAIL_Z, strict=True)]
    end = [(0.72, 0, 0.29), EAR_BASE, _mirrored(EAR_BASE)]
    right = [[_mirrored(p) for p in leg] for leg in (front, back)]
    return np.array([*spine, *front, *right[0], *neck_head, *back, *right[1], *tail, *end], dtype=np.float64)


# ---------------------------------------------------------------- the body as a signed distance
def _norm(v):
    return np.sqrt((v * v).sum(-1))


def _capsule(p, a, b, radius_a, radius_b, flat=1.0):
    """Distance to a capsule from a to b with radii that differ; `flat` scales its y radius."""
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    offset = (p - a - t[..., None] * (b - a)) * (1, 1 / flat, 1)
    return (_norm(offset) - radius_a - (radius_b - radius_a) * t) * min(1, flat)


def _ellipsoid(p, centre, radii, pitch=0.0):
    """Approximate distance to an ellipsoid turned by `pitch` about y (positive: its front goes down)."""
    c, s = np.cos(pitch), np.sin(pitch)
    q = (p - np.array(centre)) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    k0, k1 = _norm(q / radii), _norm(q / np.square(radii))
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def _union(smooth, *distances):
    """Union with edges rounded over the width `smooth`."""
    out = distances[0]
    for d in distances[1:]:
        h = np.maximum(smooth - np.abs(out - d), 0) / smooth
        out = np.minimum(out, d) - h * h * smooth / 4
    return out


def _ear_frame():
    """Columns: along the ear, across it, through it."""
    along = np.subtract(EAR_TIP, EAR_BASE)
    along /= np.linalg.norm(along)
    through = np.cross(along, (1, 0.30, -0.25))
    through /= np.linalg.norm(through)
    return np.stack([along, np.cross(through, along), through], 1)


def _ear(p):
    """A leaf that narrows to its tip."""
    q = (p - np.array(EAR_BASE)) @ _ear_frame()
    length = np.linalg.norm(np.subtract(EAR_TIP, EAR_BASE))
    t = np.clip(q[..., 0] / length, 0, 1)
    width, thickness = 0.064 * (1 - t) ** 0.8 + 0.012, 0.020 - 0.006 * t
    beyond = q[..., 0] - np.clip(q[..., 0], 0, length)
    return (np.sqrt((beyond / 0.012) ** 2 + (q[..., 1] / width) ** 2 + (q[..., 2] / thickness) ** 2) - 1) * thickness


def body_distance(points) -> np.ndarray:
    """Signed distance, negative inside and exact only near the surface, of points (..., 3) to the template: (...)."""
    p = np.array(points, dtype=np.float64)
    p[..., 1] = np.abs(p[..., 1])
    torso = _union(
        0.10,
        _ellipsoid(p, (0.20, 0, 0.055), (0.27, 0.148, 0.205), 0.12),  # rib cage
        _capsule(p, (0.12, 0, 0.10), (-0.34, 0, 0.145), 0.165, 0.12, 0.80),  # loin
        _ellipsoid(p, (-0.46, 0, 0.14), (0.165, 0.128, 0.125), -0.15),  # rump
        _capsule(p, (0.30, 0, 0.20), (0.22, 0, 0.19), 0.10, 0.11, 0.75),  # withers
        _ellipsoid(p, (0.385, 0, 0.06), (0.085, 0.09, 0.12)),  # breast
    )
    torso = _union(0.07, torso, _ellipsoid(p, (0.305, 0.098, 0.10), (0.105, 0.052, 0.155), -0.45))  # shoulder blade
    neck = _capsule(p, (0.32, 0, 0.175), (0.60, 0, 0.365), 0.148, 0.092, 0.80)
    head = _union(
        0.05,
        _ellipsoid(p, (0.650, 0, 0.385), (0.118, 0.098, 0.092), 0.1),  # skull
        _ellipsoid(p, (0.70, 0.048, 0.345), (0.085, 0.052, 0.07)),  # cheek
        _capsule(p, (0.73, 0, 0.338), (0.880, 0, 0.318), 0.070, 0.052, 0.88),  # muzzle
    )
    jaw = _capsule(p, (0.70, 0, 0.285), (0.862, 0, 0.266), 0.044, 0.033, 1.05)
    lips = _capsule(p, (0.80, 0.026, 0.292), (0.878, 0.020, 0.290), 0.036, 0.034)
    head = _union(0.035, head, _union(0.03, jaw, lips))
    head = _union(0.03, head, _ellipsoid(p, (0.735, 0.045, 0.422), (0.032, 0.027, 0.022)))  # brow
    head = _union(0.014, head, _ellipsoid(p, (0.926, 0, 0.338), (0.022, 0.028, 0.022)))  # nose
    head = _union(0.008, head, _ellipsoid(p, (0.756, 0.061, 0.390), (0.019, 0.019, 0.019)))  # eye
    head = _union(0.035, head, _ear(p))
    body = _union(0.06, _union(0.07, torso, neck), head)

    front = _union(
        0.045,
        _capsule(p, SHOULDER, ELBOW, 0.088, 0.062),
        _capsule(p, ELBOW, WRIST, 0.057, 0.033),
        _ellipsoid(p, (0.245, 0.113, -0.14), (0.035, 0.035, 0.04)),  # point of the elbow
        _capsule(p, WRIST, FRONT_FOOT, 0.036, 0.034),
    )
    front = _union(0.03, front, _paw(p, 0.355))
    back = _union(
        0.05,
        _ellipsoid(p, (-0.415, 0.085, 0.015), (0.125, 0.072, 0.175), -0.30),  # thigh
        _capsule(p, HIP, KNEE, 0.115, 0.070, 0.75),
        _capsule(p, KNEE, HOCK, 0.068, 0.036),
    )
    heel = _ellipsoid(p, (-0.512, 0.112, -0.317), (0.032, 0.029, 0.036))
    back = _union(0.03, _union(0.04, back, _capsule(p, HOCK, BACK_FOOT, 0.035, 0.034), heel), _paw(p, -0.447))
    body = _union(0.05, body, front, back)
    tail = _capsule(p, (-0.50, 0, 0.190), (-0.66, 0, 0.178), 0.072, 0.044)
    tail = _union(0.04, tail, _capsule(p, (-0.66, 0, 0.178), (-1.13, 0, 0.155), 0.044, 0.024))
    return _union(0.05, body, tail)


def _paw(p, x):
    toes = [_ellipsoid(p, (x + 0.045, y, -0.523), (0.028, 0.022, 0.027)) for y in (0.094, 0.130)]
    return _union(0.02, _ellipsoid(p, (x, 0.112, -0.515), (0.066, 0.049, 0.038)), *toes)


# ---------------------------------------------------------------- polygons
_SPACING = 1.28  # scales every cell; 1.28 gives about 3,900 vertices
_CELLS = (  # per axis: position and cell size there, before _SPACING
    ((-1.25, 0.034), (-0.66, 0.034), (-0.55, 0.026), (-0.3, 0.030), (0.2, 0.030), (0.5, 0.026), (0.62, 0.0185), (1.02, 0.0185)),
    ((0, 0.0175), (0.1, 0.0195), (0.13, 0.021), (0.2, 0.025), (0.36, 0.025)),
    ((-0.64, 0.019), (-0.45, 0.021), (-0.36, 0.030), (-0.1, 0.032), (0.1, 0.030), (0.24, 0.021), (0.30, 0.019), (0.7, 0.020)),
)  # fmt: skip
_LENSES = (  # where the grid is drawn together for more detail: centre, width, strength
    ((0.650, 0.130, 0.480), 0.085, 0.50), ((0.39, 0.112, -0.52), 0.06, 0.30), ((-0.41, 0.112, -0.52), 0.06, 0.30),
    ((-1.14, 0.0, 0.155), 0.05, 0.45), ((0.755, 0.06, 0.388), 0.05, 0.25), ((0.92, 0.0, 0.325), 0.05, 0.25),
)  # fmt: skip


def _axis(cells):
    """Grid positions whose spacing follows `cells`."""
    position, size = np.array(cells).T
    fine = np.linspace(position[0], position[-1], 4001)
    density = 1 / (_SPACING * np.interp(fine, position, size))
    count = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(fine))])
    return np.interp(np.linspace(0, count[-1], round(count[-1]) + 1), count, fine)


def _grid():
    """(X, Y, Z, 3) points that cover the left half; the first layer of cells straddles the mirror plane."""
    x, y, z = (_axis(c) for c in _CELLS)
    half_cell = y[1] / 2
    p = np.stack(np.meshgrid(x, np.concatenate([[-half_cell], y + half_cell]), z, indexing="ij"), -1)
    out = p.copy()
    for centre, width, strength in _LENSES:
        for side in (1, -1) if centre[1] else (1,):
            d = p - np.array(centre) * (1, side, 1)
            out -= strength * np.exp(-(d * d).sum(-1, keepdims=True) / (2 * width * width)) * d
    return out


def _surface_nets(points):
    """Dual polygons of the zero level: vertices (N, 3), quads (Q, 4) turned outwards, whether on the mirror plane (N,)."""
    distance = body_distance(points)
    inside = distance < 0
    cells = np.array(distance.shape) - 1
    number = np.arange(cells.prod()).reshape(cells)
    total, count, quads = np.zeros((number.size, 3)), np.zeros(number.size), []
    for axis in range(3):
        ends = [tuple(slice(1 if e else 0, None if e else -1) if a == axis else slice(None) for a in range(3)) for e in (0, 1)]
        edge = np.argwhere(inside[ends[0]] != inside[ends[1]])
        a, b = tuple(edge.T), tuple((edge + np.eye(3, dtype=int)[axis]).T)
        t = (distance[a] / (distance[a] - distance[b]))[:, None]
        crossing = points[a] + t * (points[b] - points[a])
        around = []
        for du, dv in ((-1, -1), (0, -1), (0, 0), (-1, 0)):
            cell = edge.copy()
            cell[:, (axis + 1) % 3] += du
            cell[:, (axis + 2) % 3] += dv
            exists = ((cell >= 0) & (cell < cells)).all(1)
            index = np.where(exists, number[tuple(np.clip(cell, 0, cells - 1).T)], -1)
            np.add.at(total, index[exists], crossing[exists])
            np.add.at(count, index[exists], 1)
            around.append(index)
        quad = np.stack(around, 1)
        quad = np.where(inside[a][:, None], quad, quad[:, ::-1])
        quads.append(quad[(quad >= 0).all(1)])
    used, quads = np.unique(np.concatenate(quads), return_inverse=True)
    return total[used] / count[used, None], quads.reshape(-1, 4), np.isin(used, number[:, 0])


def _onto_surface(v, plane, steps):
    """Moves points onto the zero level; those of the mirror plane stay in it. Returns them with the surface's gradient."""
    for _ in range(steps):
        h = 1e-4
        gradient = np.stack([(body_distance(v + d) - body_distance(v - d)) / (2 * h) for d in h * np.eye(3)], 1)
        step = body_distance(v) / np.maximum((gradient**2).sum(1), 0.05)
        v = v - np.clip(step, -0.02, 0.02)[:, None] * gradient
        v[plane, 1] = 0
    return v, gradient / np.maximum(_norm(gradient), 1e-9)[:, None]


def _edges(polygons):
    """(E, 2) undirected edges of polygons (N, k)."""
    k = polygons.shape[1]
    pairs = np.concatenate([polygons[:, [i, (i + 1) % k]] for i in range(k)])
    return np.unique(np.sort(pairs, 1), axis=0)


def _smoothing(edges, num_verts):
    """(V, V) matrix: the mean over each vertex's neighbours."""
    a = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(num_verts, num_verts)).tocsr()
    a = a + a.T
    return scipy.sparse.diags(1 / np.asarray(a.sum(1)).ravel()) @ a


def build_mesh():
    """The template's mesh: verts (V, 3), faces (F, 3) turned outwards, symmetry (V,) index of each vertex's mirror image."""
    v, quads, plane = _surface_nets(_grid())
    v[plane, 1] = 0
    half, off_plane = len(v), np.flatnonzero(~plane)
    image = np.arange(half)
    image[off_plane] = half + np.arange(len(off_plane))
    symmetry = np.concatenate([image, off_plane])

    def both(v):
        return np.concatenate([v, v[off_plane] * (1, -1, 1)])

    smoothing = _smoothing(_edges(np.concatenate([quads, image[quads]])), half + len(off_plane))
    v, normal = _onto_surface(v, plane, 3)
    for _ in range(12):  # even out the polygons along the surface
        shift = (smoothing @ both(v))[:half] - v
        shift -= (shift * normal).sum(1, keepdims=True) * normal
        v += 0.5 * shift
        v[plane, 1] = 0
        v, normal = _onto_surface(v, plane, 1)
    v, _ = _onto_surface(v, plane, 2)
    first = _norm(v[quads[:, 0]] - v[quads[:, 2]]) <= _norm(v[quads[:, 1]] - v[quads[:, 3]])  # cut along the short diagonal
    faces = np.concatenate(
        [
            np.where(first[:, None], quads[:, [0, 1, 2]], quads[:, [0, 1, 3]]),
            np.where(first[:, None], quads[:, [0, 2, 3]], quads[:, [1, 2, 3]]),
        ]
    )
    return both(v), np.concatenate([faces, image[faces][:, ::-1]]), symmetry


# ---------------------------------------------------------------- skin and joints
def _bones():
    """Per bone: joint, two ends, the flesh's radius at each. The torso's lie in the middle of its flesh."""
    torso = [
        (1, (-0.56, 0, 0.13), (-0.34, 0, 0.13), 0.12, 0.14),
        (2, (-0.28, 0, 0.13), (-0.17, 0, 0.125), 0.13, 0.14),
        (3, (-0.14, 0, 0.12), (-0.03, 0, 0.11), 0.14, 0.155),
        (4, (0.0, 0, 0.10), (0.11, 0, 0.08), 0.16, 0.18),
        (5, (0.14, 0, 0.075), (0.22, 0, 0.07), 0.19, 0.195),
        (6, (0.26, 0, 0.07), (0.38, 0, 0.11), 0.195, 0.15),
        (15, (0.44, 0, 0.245), (0.555, 0, 0.33), 0.12, 0.10),
        (16, (0.63, 0, 0.375), (0.91, 0, 0.335), 0.10, 0.045),
        (32, (0.74, 0, 0.262), (0.88, 0, 0.255), 0.024, 0.024),
    ]
    left = [
        (7, SHOULDER, ELBOW, 0.085, 0.060), (8, ELBOW, WRIST, 0.057, 0.034), (9, WRIST, FRONT_FOOT, 0.035, 0.034),
        (10, FRONT_FOOT, FRONT_TOE, 0.036, 0.034), (17, HIP, KNEE, 0.085, 0.072), (18, KNEE, HOCK, 0.066, 0.033),
        (19, HOCK, BACK_FOOT, 0.034, 0.034), (20, BACK_FOOT, BACK_TOE, 0.036, 0.034), (33, EAR_BASE, EAR_TIP, 0.040, 0.030),
    ]  # fmt: skip
    right = [(j + (1 if j == 33 else 4), _mirrored(a), _mirrored(b), ra, rb) for j, a, b, ra, rb in left]
    tail_ends = np.stack([np.append(_TAIL_X, -1.15), np.zeros(8), np.append(_TAIL_Z, 0.155)], 1)
    radius = np.linspace(0.048, 0.024, 8)
    tail = [(25 + i, tail_ends[i], tail_ends[i + 1], radius[i], radius[i + 1]) for i in range(7)]
    return torso + left + right + tail


def skin_weights(verts, faces, symmetry) -> np.ndarray:
    """(V, J) skinning weights, the four largest a vertex (and their equals): nearness to each bone in units of its flesh, spread
    over the skin like heat."""
    near = np.full((len(verts), len(PARENTS)), np.inf)
    for joint, a, b, radius_a, radius_b in _bones():
        a, b = np.array(a), np.array(b)
        t = np.clip((verts - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        near[:, joint] = _norm(verts - a - t[:, None] * (b - a)) / (radius_a + (radius_b - radius_a) * t)
    near -= near.min(1, keepdims=True)
    weights = np.exp(-8 * near)
    weights /= weights.sum(1, keepdims=True)
    edges = _edges(faces)
    length = _norm(verts[edges[:, 0]] - verts[edges[:, 1]])
    conductance = scipy.sparse.coo_matrix((1 / length**2, edges.T), shape=(len(verts),) * 2).tocsr()
    conductance = conductance + conductance.T
    degree = np.asarray((conductance != 0).sum(1)).ravel()
    laplacian = scipy.sparse.diags(np.asarray(conductance.sum(1)).ravel()) - conductance
    # Heat spreads over about a third of the flesh's thickness there.
    thickness = weights @ _flesh()
    time = (0.33 * thickness) ** 2 * 4 / degree
    weights = scipy.sparse.linalg.spsolve((scipy.sparse.eye(len(verts)) + scipy.sparse.diags(time) @ laplacian).tocsc(), weights)
    weights = (weights + weights[symmetry][:, _mirror_joints()]) / 2
    fourth = np.sort(weights, 1)[:, -4, None]
    weights = np.where(weights >= fourth * (1 - 1e-9), np.maximum(weights - 0.01, 0), 0)
    return weights / weights.sum(1, keepdims=True)


def _flesh():
    """(J,) mean radius of the flesh round each joint's bone."""
    radius = np.zeros(len(PARENTS))
    for joint, _, _, radius_a, radius_b in _bones():
        radius[joint] = (radius_a + radius_b) / 2
    return radius


def _mirror_joints():
    """(J,) the joint on the other side."""
    image = np.arange(len(PARENTS))
    for left, right in ((joints.FRONT_LEFT_LEG, joints.FRONT_RIGHT_LEG), (joints.BACK_LEFT_LEG, joints.BACK_RIGHT_LEG)):
        image[list(left)], image[list(right)] = list(right), list(left)
    image[[joints.LEFT_EAR, joints.RIGHT_EAR]] = joints.RIGHT_EAR, joints.LEFT_EAR
    return image


def joint_regressor(verts, weights, symmetry) -> np.ndarray:
    """(J, V) non-negative rows that sum to 1 and reproduce the rest joints: nearest in entropy to a Gaussian about each joint."""
    image, centres = _mirror_joints(), rest_joints()
    regressor = np.zeros((len(centres), len(verts)))
    for j, centre in enumerate(centres):
        if image[j] < j:
            regressor[j] = regressor[image[j]][symmetry]
            continue
        family = [j, max(PARENTS[j], 0), *(k for k, p in enumerate(PARENTS) if p == j)]
        own = weights[:, family].sum(1) > 0.4
        if j < joints.FRONT_LEFT_LEG[0]:  # along the spine, all skin round about
            own[:] = True
        distance = np.where(own, _norm(verts - centre), np.inf)
        chosen = np.argsort(distance, kind="stable")[:160]
        offset = verts[chosen] - centre
        width = distance[chosen[0]] * 0.5 + 0.02
        prior = -0.5 * (distance[chosen] / width) ** 2
        tilt = np.zeros(3)
        for _ in range(200):  # damped Newton steps on the convex dual
            w = np.exp(prior + offset @ tilt - (prior + offset @ tilt).max())
            w /= w.sum()
            mean = w @ offset
            step = np.linalg.solve((offset * w[:, None]).T @ offset - np.outer(mean, mean) + 1e-7 * np.eye(3), mean)
            tilt -= step * min(1, 20 / np.linalg.norm(step))
        regressor[j, chosen] = w
        if image[j] == j:
            regressor[j] = (regressor[j] + regressor[j][symmetry]) / 2
    return regressor


# ---------------------------------------------------------------- shapes
SHAPES = (
    "size", "leg length", "girth", "torso length", "neck length", "head size", "muzzle length", "muzzle depth", "ear length",
    "ear drop", "coat", "tail length", "tail thickness", "tail curl", "chest depth", "belly", "leg thickness", "paw size",
    "hindquarters", "neck thickness", "skull width", "chest width", "back slope", "ear width", "hind angulation", "brow",
    "throat",
)  # fmt: skip


def _ramp(x, low, high):
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _stretch(x, low, high, soft=0.04):
    """How far x is past low, up to high, with soft ends: what a uniform stretch of [low, high] moves a point by."""
    return soft * (np.logaddexp(0, (x - low) / soft) - np.logaddexp(0, (x - high) / soft))


def _bump(distance, width):
    return np.exp(-0.5 * np.square(distance / width))


def shape_directions(verts, faces, weights) -> np.ndarray:
    """(V, 3, K) displacement of each vertex by one unit of each of SHAPES, before the template is centred; mirror-symmetric."""
    x, y, z = verts.T
    zero = np.zeros_like(x)
    front = weights[:, [*joints.FRONT_LEFT_LEG, *joints.FRONT_RIGHT_LEG]].sum(1)
    back = weights[:, [*joints.BACK_LEFT_LEG, *joints.BACK_RIGHT_LEG]].sum(1)
    tail, ears = weights[:, list(joints.TAIL)].sum(1), weights[:, [joints.LEFT_EAR, joints.RIGHT_EAR]].sum(1)
    head = weights[:, [joints.HEAD, joints.MOUTH]].sum(1) + ears
    neck = weights[:, joints.NECK]
    legs, torso = front + back, np.clip(1 - front - back - tail - head, 0, 1)
    side = np.sign(y)
    below = np.minimum(z + 0.06, 0) * np.clip(legs * 1.5, 0, 1)  # depth along a leg
    shin = _ramp(-z, 0.08, 0.22) * legs  # 1 on the slim part of the legs
    axis_z = 0.13 - 0.06 * _ramp(x, -0.35, 0.15)  # the torso's middle
    leg_y, leg_x = 0.112 * side, _leg_axis(x, z)
    from_head = verts - (0.60, 0, 0.36)
    neck_way = np.subtract((0.60, 0, 0.36), (0.42, 0, 0.235))
    along_neck = (verts - (0.42, 0, 0.235)) @ (neck_way / np.linalg.norm(neck_way)) / np.linalg.norm(neck_way)
    neck_centre = np.array((0.42, 0, 0.235)) + np.clip(along_neck, 0, 1)[:, None] * neck_way
    muzzle = _ramp(x, 0.70, 0.80) * head * (1 - ears)
    trunk = torso * (1 - 0.6 * neck)
    neck_stretch = np.clip(_stretch(along_neck, 0, 1, 0.12), 0, 1) * (neck + head + 0.5 * torso * _ramp(x, 0.3, 0.42))
    rump = _bump(x + 0.43, 0.13) * _ramp(z, -0.28, -0.05) * (1 - tail)
    fur = 0.013 * torso * (1 + 0.5 * _ramp(-z, -0.1, 0.1)) + 0.004 * np.clip(legs + head - ears, 0, 1) + 0.008 * tail
    frame = _ear_frame()
    ear_base = np.stack([zero + EAR_BASE[0], EAR_BASE[1] * side, zero + EAR_BASE[2]], 1)
    flip = np.stack([zero + 1, side, zero + 1], 1)
    ear = ((verts - ear_base) * flip) @ frame  # (V, 3) along, across, through
    ear_length = np.linalg.norm(np.subtract(EAR_TIP, EAR_BASE))
    ear_t = np.clip(ear[:, :1] / ear_length, 0, 1.2) * ears[:, None]
    hinge = np.array((1.0, 0.1, 0.0))  # the ear drops about this line: its left one turns -y towards z

    def move(dx=0, dy=0, dz=0):
        return np.stack([zero + dx, zero + dy, zero + dz], 1)

    normal = np.zeros_like(verts)
    for k in range(3):
        np.add.at(normal, faces[:, k], np.cross(verts[faces[:, 1]] - verts[faces[:, 0]], verts[faces[:, 2]] - verts[faces[:, 0]]))
    normal /= _norm(normal)[:, None]
    moves = {
        "size": 0.07 * verts,
        "leg length": move(dz=0.16 * below),
        "girth": trunk[:, None] * move(0, 0.12 * y, 0.10 * (z - axis_z)) + move(dy=0.008 * side * legs),
        "torso length": move(0.11 * (_stretch(x, -0.30, 0.22) - 0.26)),
        "neck length": 0.20 * neck_stretch[:, None] * neck_way,
        "head size": 0.11 * head[:, None] * from_head,
        "muzzle length": move(0.20 * _stretch(x, 0.74, 0.97, 0.03) * head * (1 - ears)),
        "muzzle depth": muzzle[:, None] * move(0, 0.16 * y, 0.18 * (z - 0.315)),
        "ear length": 0.25 * ears[:, None] * (ear[:, :1] * frame[:, 0]) * flip,
        "ear drop": (ears[:, None] * np.cross(-0.42 * hinge, (verts - ear_base) * flip) + ear_t**2 * (0, -0.012, -0.035)) * flip,
        "ear width": 0.22 * ears[:, None] * (ear[:, 1:2] * frame[:, 1]) * flip,
        "tail length": move(-0.16 * _stretch(-x, 0.60, 1.2, 0.03) * _ramp(tail, 0, 0.5)),
        "tail thickness": tail[:, None] * move(0, 0.30 * y, 0.30 * (z - np.interp(-x, -_TAIL_X, _TAIL_Z))),
        "tail curl": move(0, 0, 0.35 * np.square(_stretch(-x, 0.60, 1.2, 0.03)) * tail),
        "chest depth": move(dz=-0.040 * _bump(x - 0.20, 0.17) * _ramp(-z, -0.05, 0.12) * torso),
        "belly": move(dz=-0.040 * _bump(x + 0.13, 0.15) * _ramp(-z, -0.08, 0.05) * torso),
        "leg thickness": (shin + 0.4 * legs)[:, None] * move(0.11 * (x - leg_x), 0.11 * (y - leg_y)),
        "paw size": (_ramp(-z, 0.44, 0.50))[:, None] * move(0.16 * (x - leg_x - 0.02), 0.16 * (y - leg_y), 0.10 * (z + 0.55)),
        "hindquarters": rump[:, None] * move(0.10 * (x + 0.43), 0.13 * y, 0.10 * (z - 0.05)),
        "chest width": move(dy=0.022 * side * _ramp(np.abs(y), 0, 0.09) * _bump(x - 0.25, 0.22) * _ramp(-head, -0.5, 0)),
        "skull width": ((1 - 0.6 * muzzle) * head)[:, None] * move(0, 0.13 * y, 0),
        "neck thickness": 0.16 * (neck * (1 - _ramp(along_neck, 1.0, 1.3)))[:, None] * (verts - neck_centre),
        "back slope": move(dz=0.05 * (x + 0.05) * _ramp(z, -0.55, -0.05)),
        "brow": (head * _bump(x - 0.735, 0.04) * _ramp(z, 0.37, 0.43) * (1 - ears))[:, None] * move(0, 0.004 * side, 0.018),
        "hind angulation": move(-0.035 * back * _bump(z + 0.325, 0.12) + 0.022 * back * _bump(z + 0.115, 0.10)),
        "coat": normal * fur[:, None],
        "throat": (neck + head)[:, None] * move(dz=-0.028 * _bump(x - 0.56, 0.09) * _ramp(-z, -0.34, -0.20)),
    }  # fmt: skip
    return np.stack([moves[name] for name in SHAPES], -1)


def _leg_axis(x, z):
    """x of the legs' middle at height z: of the front legs where x > 0, else of the hind legs."""

    def at(*points):
        points = sorted(points, key=lambda p: p[2])
        return np.interp(z, [p[2] for p in points], [p[0] for p in points])

    return np.where(x > 0, at(SHOULDER, ELBOW, WRIST, FRONT_FOOT), at(HIP, KNEE, HOCK, BACK_FOOT))


# Breeds, as coefficients of SHAPES (those left out are 0). Each is drawn with the spread below.
BREEDS = {
    "hound": {"ear drop": 1.3, "ear length": 1.0, "muzzle depth": 0.8, "tail length": 0.5, "throat": 0.6, "chest depth": 0.4},
    "retriever": {"ear drop": 1.1, "ear length": 0.4, "muzzle depth": 0.5, "tail thickness": 1.3, "girth": 0.5, "coat": 0.8},
    "sighthound": {"leg length": 1.2, "girth": -1.0, "belly": -1.4, "chest depth": 1.2, "muzzle length": 1.2, "neck length": 1.1,
                   "leg thickness": -1.0, "skull width": -0.8, "ear length": -0.7, "tail thickness": -0.8},
    "terrier": {"size": -1.2, "leg length": -0.5, "torso length": -0.6, "head size": 0.7, "tail length": -1.6, "ear drop": 0.3,
                "muzzle depth": 0.9, "ear length": -0.5},
    "spitz": {"ear drop": -1.0, "ear length": -0.2, "tail curl": 1.6, "tail thickness": 1.7, "coat": 1.2, "neck thickness": 0.9,
              "muzzle length": -0.4, "girth": 0.5},
    "dachshund": {"size": -1.0, "leg length": -2.3, "torso length": 1.8, "ear drop": 1.2, "ear length": 0.7, "muzzle length": 0.5,
                  "leg thickness": 0.5, "chest depth": 0.3},
    "mastiff": {"size": 1.1, "girth": 1.1, "head size": 1.0, "muzzle length": -1.5, "muzzle depth": 1.4, "leg thickness": 1.3,
                "paw size": 1.0, "chest width": 1.3, "skull width": 1.0, "neck thickness": 1.0, "ear drop": 0.8},
    "shepherd": {"ear drop": -1.2, "ear length": 0.0, "hind angulation": 1.0, "back slope": 0.8, "muzzle length": 0.6,
                 "tail thickness": 1.0, "torso length": 0.4},
}  # fmt: skip
_SPREAD = 0.55  # standard deviation of every coefficient within a breed
_FAMILIES = ("hound", None, "sighthound", "terrier", "spitz")  # family 1, the default, covers all breeds


def breed_mean(breed: str) -> np.ndarray:
    """(K,) mean coefficients of one of BREEDS."""
    return np.array([BREEDS[breed].get(name, 0.0) for name in SHAPES])


def shape_families() -> tuple[np.ndarray, np.ndarray]:
    """Means (5, K) and covariances (5, K, K) of the families; number 1 has the moments of all breeds together."""
    all_means = np.stack([breed_mean(b) for b in BREEDS])
    within = _SPREAD**2 * np.eye(len(SHAPES))
    means = np.stack([all_means.mean(0) if f is None else breed_mean(f) for f in _FAMILIES])
    between = np.cov(all_means.T, bias=True)
    return means, np.stack([within + between if f is None else within for f in _FAMILIES])


def sample_betas(generator: np.random.Generator, breed: str, n: int = NUM_BETAS) -> np.ndarray:
    """(n,) shape coefficients of one dog of a breed, within 2.5 standard deviations of its mean."""
    return breed_mean(breed)[:n] + _SPREAD * np.clip(generator.standard_normal(n), -2.5, 2.5)


# ---------------------------------------------------------------- poses
POSES = {"standing": 0.40, "walking": 0.29, "running": 0.08, "sitting": 0.14, "lying": 0.07, "on its side": 0.02}  # how often


class _Pose:
    """One pose in the making: axis-angle per joint in the rest pose's axes (positive y bends downwards, or a leg backwards)."""

    def __init__(self, generator):
        self.generator, self.angles = generator, np.zeros((len(PARENTS), 3))

    def u(self, low, high):
        return self.generator.uniform(low, high)

    def n(self, spread):
        return spread * np.clip(self.generator.standard_normal(), -2.5, 2.5)

    def leg(self, chain, angles, outwards=0.0, turn=0.0):
        """Bends a leg: four angles about y down the chain; `outwards` spreads it, `turn` twists it outwards."""
        left = 1 if chain in (joints.FRONT_LEFT_LEG, joints.BACK_LEFT_LEG) else -1
        for joint, angle in zip(chain, angles, strict=True):
            self.angles[joint, 1] += angle
        self.angles[chain[0], 0] += left * outwards
        self.angles[chain[0], 2] += left * turn


def _stride(pose, chain, phase, reach, lift, front):
    """One leg of a gait: `phase` in radians, the foot is in the air around phase pi / 2."""
    swing, air = -reach * np.cos(phase), max(0.0, np.sin(phase)) * lift
    bends = (swing, -0.75 * air, 1.1 * air, 0.5 * air) if front else (swing * 0.8, 0.55 * air, -0.65 * air, 0.6 * air)
    pose.leg(chain, np.array(bends) + [pose.n(0.05) for _ in range(4)])


_LEGS = (joints.FRONT_LEFT_LEG, joints.FRONT_RIGHT_LEG, joints.BACK_LEFT_LEG, joints.BACK_RIGHT_LEG)


def _one_pose(generator, kind):
    p = _Pose(generator)
    a = p.angles
    bend = p.n(0.04 if kind in ("walking", "running") else 0.09)
    for joint in range(2, 7):  # the spine
        a[joint] += p.n(0.03), p.n(0.03), bend + p.n(0.03)
    neck, head = p.u(-0.45, 0.35), p.n(0.18)
    tail, curl = p.u(-0.7, 1.0), p.n(0.12)
    if kind == "standing":
        for leg in _LEGS:
            p.leg(leg, [p.n(0.13), p.n(0.12), p.n(0.08), p.n(0.08)], p.n(0.03), p.n(0.06))
        if p.u(0, 1) < 0.2:  # sniffing
            neck, head = p.u(0.6, 0.95), p.u(0, 0.4)
        elif p.u(0, 1) < 0.15:  # a paw raised
            p.leg(_LEGS[generator.integers(2)], [p.u(-0.6, -0.2), p.u(-0.8, -0.3), p.u(0.5, 1.1), 0.3])
    elif kind == "walking":
        phase, reach, lift = p.u(0, 2 * np.pi), p.u(0.25, 0.45), p.u(0.4, 0.8)
        for leg, offset in zip(_LEGS, (0, np.pi, np.pi + 0.4, 0.4), strict=True):
            _stride(p, leg, phase + offset, reach, lift, leg[0] < joints.NECK)
    elif kind == "running":
        phase, reach, lift = p.u(0, 2 * np.pi), p.u(0.55, 0.8), p.u(0.7, 1.0)
        for leg, offset in zip(_LEGS, (0, 0.5, np.pi + 0.2, np.pi + 0.6), strict=True):
            _stride(p, leg, phase + offset, reach, lift, leg[0] < joints.NECK)
        a[2:7, 1] += 0.06 * np.cos(phase)
        a[0, 1] += 0.12 * np.sin(phase)
        neck = p.u(-0.2, 0.3)
        tail = p.u(-0.2, 0.8)
    elif kind == "sitting":
        tilt = p.u(0.42, 0.54)
        a[0, 1] -= tilt
        a[2:7, 1] -= p.u(0.01, 0.05)
        raised = tilt - a[2:7, 1].sum()
        wide = p.u(0.05, 0.18)
        for leg in _LEGS[:2]:
            upright = np.clip(raised + p.n(0.06), 0, 1.5)
            p.leg(leg, [0.62 * upright, 0.38 * upright, p.n(0.06), p.n(0.06)], p.n(0.02))
        for leg in _LEGS[2:]:
            p.leg(leg, [-0.46 + p.n(0.03), 0.45 + p.n(0.1), -0.68 + p.n(0.06), 0.35 + p.n(0.1)], wide, p.u(0, 0.2))
        neck, head = p.u(0.1, 0.75), p.u(0.0, 0.5)
        tail = p.u(-0.1, 0.5) + 0.5
    elif kind == "lying":
        tuck = p.u(0.35, 0.55)  # the rump is tucked under, the chest level
        a[0, 1] -= tuck - 0.22
        a[2:7, 1] += tuck / 5
        for leg in _LEGS[:2]:
            p.leg(leg, [-0.62 + p.n(0.10), -0.86 + p.n(0.05), p.n(0.1), p.n(0.1)], p.n(0.02), p.n(0.05))
        for leg in _LEGS[2:]:
            p.leg(leg, [-0.48 + p.n(0.02), 0.74 + p.n(0.04), -0.76 + p.n(0.03), 0.45 + p.n(0.1)], p.u(0.1, 0.2), p.u(0, 0.3))
        neck = p.u(-0.9, 0.2)
        tail = p.u(-0.2, 0.4)
    elif kind == "on its side":
        a[0, 0] += generator.choice((-1, 1)) * p.u(1.35, 1.7)
        for leg in _LEGS[:2]:
            p.leg(leg, [p.u(-0.7, 0.1), p.u(-0.6, 0.3), p.u(0, 0.7), p.n(0.1)])
        for leg in _LEGS[2:]:
            p.leg(leg, [p.u(-0.45, 0.3), p.u(-0.3, 0.6), p.u(-0.6, 0.0), p.u(-0.1, 0.4)])
        neck, tail = p.u(-0.3, 0.4), p.u(-0.6, 0.4)
    a[joints.NECK] += p.n(0.08), neck, p.n(0.28)
    a[joints.HEAD] += p.n(0.12), head, p.n(0.2)
    wag = p.n(0.35)
    a[joints.TAIL[0]] += 0, tail, wag
    for joint in joints.TAIL[1:]:
        a[joint] += 0, curl + p.n(0.05), 0.25 * wag + p.n(0.05)
    a[joints.MOUTH, 1] += max(0.0, p.u(-0.2, 0.35))
    lift, turn = p.u(-0.4, 0.25), p.n(0.15)
    for joint, left in ((joints.LEFT_EAR, 1), (joints.RIGHT_EAR, -1)):
        a[joint] += left * (lift + p.n(0.06)), p.n(0.08), left * (turn + p.n(0.06))
    limits = np.array(joints.JOINT_LIMITS)  # (32, 2, 3)
    a[1:33] = np.clip(a[1:33], 0.99 * limits[:, 0], 0.99 * limits[:, 1])
    return a.ravel()


def sample_pose(generator: np.random.Generator, n: int, kinds=None) -> np.ndarray:
    """(n, 105) axis-angle poses, drawn from POSES and inside the joint limits.

    The first three numbers tilt the whole animal (sitting, lying on its side) in the world's axes, z up; turn the world to face
    a camera after it. kinds: n names of POSES, drawn where None.
    """
    if kinds is None:
        kinds = generator.choice(list(POSES), size=n, p=list(POSES.values()))
    return np.stack([_one_pose(generator, kind) for kind in kinds])


def pose_prior_moments(num_samples: int = 2000, floor: float = 0.06):
    """Mean (105,) of `sample_pose`, lower Cholesky factor (105, 105) of its precision; `floor` (radians) keeps that finite."""
    poses = sample_pose(np.random.default_rng(0), num_samples)
    poses[:, :3] = 0
    return poses.mean(0), np.linalg.cholesky(np.linalg.inv(np.cov(poses.T) + floor**2 * np.eye(poses.shape[1])))


# ---------------------------------------------------------------- files
def build_quadruped() -> dict:
    """The body's tables, named as in SMAL's file: `v_template` (V, 3), `f` (F, 3), `shapedirs` (V, 3, K), `posedirs`
    (V, 3, 9 (J - 1)), `J_regressor` (J, V), `weights` (V, J), `kintree_table` (2, J), and besides `landmark_vertices` (6,),
    `mirror_plane_vertices` and `symIdx` (V,)."""
    verts, faces, symmetry = build_mesh()
    weights = skin_weights(verts, faces, symmetry)
    regressor = joint_regressor(verts, weights, symmetry)
    directions = shape_directions(verts, faces, weights)
    plane = np.flatnonzero(symmetry == np.arange(len(verts)))

    def nearest(point, among):
        return among[_norm(verts[among] - np.array(point)).argmin()]

    everywhere = np.arange(len(verts))
    ear = nearest(np.add(EAR_TIP, 0.02 * _ear_frame()[:, 0]), everywhere)
    eye = nearest(EYE, everywhere)
    landmarks = [nearest(NOSE, plane), nearest(CHIN, plane), symmetry[ear], ear, eye, symmetry[eye]]
    verts = verts - np.array([1, 0, 1]) * (verts[:, 0].mean() + verts[:, 2].mean()) / 2  # the mean of all numbers becomes 0
    return {
        "v_template": verts,
        "f": faces.astype(np.uint32),
        "shapedirs": directions,
        "posedirs": np.zeros((len(verts), 3, 9 * (len(PARENTS) - 1)), np.float32),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([np.array(PARENTS) % 2**32, np.arange(len(PARENTS))], np.uint32),
        "landmark_vertices": np.array(landmarks),
        "mirror_plane_vertices": plane,
        "symIdx": symmetry,
    }


def write_quadruped(data_dir) -> None:
    """Writes the body (`smal/`), its priors (`priors/`) and its mesh hierarchy under data_dir, each aside and then renamed."""
    data_dir = Path(data_dir)
    body = build_quadruped()
    means, covariances = shape_families()
    mean_pose, factor = pose_prior_moments()
    n = NUM_BETAS
    betas_mean, betas_cov = np.zeros(n + NUM_LOGSCALES + 1), np.diag(np.r_[np.ones(n), np.full(NUM_LOGSCALES, 0.1**2), 1])
    betas_mean[:n], betas_cov[:n, :n] = means[1, :n], covariances[1, :n, :n]
    tables = {
        f"smal/{MODEL_FILE}": {k: v for k, v in body.items() if k != "symIdx"},
        f"smal/{FAMILY_FILE}": {"cluster_means": means, "cluster_cov": covariances},
        f"smal/{SYMMETRY_FILE}": {"symIdx": body["symIdx"]},
        **{f"priors/{stem}": {"mean_pose": mean_pose, "pic": factor} for stem in POSE_PRIOR_FILES.values()},
        "priors/" + UNITY_BETAS_FILE.removesuffix(".npz"): {"mean": betas_mean, "cov": betas_cov},
    }
    for stem, table in tables.items():
        with atomic_write(data_dir / f"{stem}.npz") as temporary:
            np.savez_compressed(temporary, **table)
    MeshHierarchy.build(body["v_template"], body["f"].astype(np.int64), (4, 4, 4, 4)).save(data_dir / HIERARCHY_FILE)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data/synthetic", help="where smal/, priors/ and the mesh hierarchy go")
    data_dir = parser.parse_args(argv).data_dir
    write_quadruped(data_dir)
    print(f"The made-up quadruped, its priors and its mesh hierarchy are in {data_dir}")


if __name__ == "__main__":
    main()
