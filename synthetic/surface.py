"""The embedded dog's surface: the zero level of a smooth union of tapered capsules and ellipsoids,
polygonised on one half and mirrored."""

import numpy as np
import scipy.sparse

from . import skeleton as at
from .skeleton import norm

SPACING = 1.28  # scales every cell; 1.28 gives about 3,900 vertices
CELLS = (  # per axis: position and cell size there, before SPACING
    ((-1.25, 0.034), (-0.66, 0.034), (-0.55, 0.026), (-0.3, 0.030),
     (0.2, 0.030), (0.5, 0.026), (0.62, 0.0185), (1.02, 0.0185)),
    ((0, 0.0175), (0.1, 0.0195), (0.13, 0.021), (0.2, 0.025), (0.36, 0.025)),
    ((-0.64, 0.019), (-0.45, 0.021), (-0.36, 0.030), (-0.1, 0.032),
     (0.1, 0.030), (0.24, 0.021), (0.30, 0.019), (0.7, 0.020)),
)  # fmt: skip
LENSES = (  # where the grid is drawn together for more detail: centre, width, strength
    ((0.650, 0.130, 0.480), 0.085, 0.50),
    ((0.39, 0.112, -0.52), 0.06, 0.30),
    ((-0.41, 0.112, -0.52), 0.06, 0.30),
    ((-1.14, 0.0, 0.155), 0.05, 0.45),
    ((0.755, 0.06, 0.388), 0.05, 0.25),
    ((0.92, 0.0, 0.325), 0.05, 0.25),
)


def _capsule(p, a, b, radius_a, radius_b, flat=1.0):
    """Distance to a capsule from a to b of two radii; `flat` scales its y radius."""
    a, b = np.array(a, np.float64), np.array(b, np.float64)
    t = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    offset = (p - a - t[..., None] * (b - a)) * (1, 1 / flat, 1)
    return (norm(offset) - radius_a - (radius_b - radius_a) * t) * min(1, flat)


def _ellipsoid(p, centre, radii, pitch=0.0):
    """Approximate distance to an ellipsoid turned by `pitch` about y (positive: front down)."""
    c, s = np.cos(pitch), np.sin(pitch)
    q = (p - np.array(centre)) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    k0, k1 = norm(q / radii), norm(q / np.square(radii))
    return k0 * (k0 - 1) / np.maximum(k1, 1e-9)


def _union(smooth, *distances):
    """Union with edges rounded over the width `smooth`."""
    out = distances[0]
    for d in distances[1:]:
        h = np.maximum(smooth - np.abs(out - d), 0) / smooth
        out = np.minimum(out, d) - h * h * smooth / 4
    return out


def ear_frame() -> np.ndarray:
    """(3, 3), columns: along the left ear, across it, through it."""
    along = np.subtract(at.EAR_TIP, at.EAR_BASE)
    along /= np.linalg.norm(along)
    through = np.cross(along, (1, 0.30, -0.25))
    through /= np.linalg.norm(through)
    return np.stack([along, np.cross(through, along), through], 1)


def _ear(p):
    """A leaf that narrows to its tip."""
    q = (p - np.array(at.EAR_BASE)) @ ear_frame()
    length = np.linalg.norm(np.subtract(at.EAR_TIP, at.EAR_BASE))
    t = np.clip(q[..., 0] / length, 0, 1)
    width, thickness = 0.064 * (1 - t) ** 0.8 + 0.012, 0.020 - 0.006 * t
    beyond = (q[..., 0] - np.clip(q[..., 0], 0, length)) / 0.012
    across, through = q[..., 1] / width, q[..., 2] / thickness
    return (np.sqrt(beyond**2 + across**2 + through**2) - 1) * thickness


def _paw(p, x):
    toes = [_ellipsoid(p, (x + 0.045, y, -0.523), (0.028, 0.022, 0.027)) for y in (0.094, 0.130)]
    return _union(0.02, _ellipsoid(p, (x, 0.112, -0.515), (0.066, 0.049, 0.038)), *toes)


def _trunk(p):
    trunk = _union(
        0.10,
        _ellipsoid(p, (0.20, 0, 0.055), (0.27, 0.148, 0.205), 0.12),  # rib cage
        _capsule(p, (0.12, 0, 0.10), (-0.34, 0, 0.145), 0.165, 0.12, 0.80),  # loin
        _ellipsoid(p, (-0.46, 0, 0.14), (0.165, 0.128, 0.125), -0.15),  # rump
        _capsule(p, (0.30, 0, 0.20), (0.22, 0, 0.19), 0.10, 0.11, 0.75),  # withers
        _ellipsoid(p, (0.385, 0, 0.06), (0.085, 0.09, 0.12)),  # breast
    )
    shoulder_blade = _ellipsoid(p, (0.305, 0.098, 0.10), (0.105, 0.052, 0.155), -0.45)
    return _union(0.07, trunk, shoulder_blade)


def _head(p):
    head = _union(
        0.05,
        _ellipsoid(p, (0.650, 0, 0.385), (0.118, 0.098, 0.092), 0.1),  # skull
        _ellipsoid(p, (0.70, 0.048, 0.345), (0.085, 0.052, 0.07)),  # cheek
        _capsule(p, (0.73, 0, 0.338), (0.880, 0, 0.318), 0.070, 0.052, 0.88),  # muzzle
    )
    jaw = _capsule(p, (0.70, 0, 0.285), (0.862, 0, 0.266), 0.044, 0.033, 1.05)
    lips = _capsule(p, (0.80, 0.026, 0.292), (0.878, 0.020, 0.290), 0.036, 0.034)
    head = _union(0.035, head, _union(0.03, jaw, lips))
    brow = _ellipsoid(p, (0.735, 0.045, 0.422), (0.032, 0.027, 0.022))
    nose = _ellipsoid(p, (0.926, 0, 0.338), (0.022, 0.028, 0.022))
    eye = _ellipsoid(p, (0.756, 0.061, 0.390), (0.019, 0.019, 0.019))
    for smooth, part in ((0.03, brow), (0.014, nose), (0.008, eye), (0.035, _ear(p))):
        head = _union(smooth, head, part)
    return head


def _legs(p):
    front = _union(
        0.045,
        _capsule(p, at.SHOULDER, at.ELBOW, 0.088, 0.062),
        _capsule(p, at.ELBOW, at.WRIST, 0.057, 0.033),
        _ellipsoid(p, (0.245, 0.113, -0.14), (0.035, 0.035, 0.04)),  # point of the elbow
        _capsule(p, at.WRIST, at.FRONT_FOOT, 0.036, 0.034),
    )
    back = _union(
        0.05,
        _ellipsoid(p, (-0.415, 0.085, 0.015), (0.125, 0.072, 0.175), -0.30),  # thigh
        _capsule(p, at.HIP, at.KNEE, 0.115, 0.070, 0.75),
        _capsule(p, at.KNEE, at.HOCK, 0.068, 0.036),
    )
    heel = _ellipsoid(p, (-0.512, 0.112, -0.317), (0.032, 0.029, 0.036))
    back = _union(0.04, back, _capsule(p, at.HOCK, at.BACK_FOOT, 0.035, 0.034), heel)
    return _union(0.03, front, _paw(p, 0.355)), _union(0.03, back, _paw(p, -0.447))


def body_distance(points) -> np.ndarray:
    """Signed distance to the template's surface, negative inside, exact only near the surface.

    Args:
        points: (..., 3), body units, before the template is centred.

    Returns:
        (...), body units.
    """
    p = np.array(points, dtype=np.float64)
    p[..., 1] = np.abs(p[..., 1])
    neck = _capsule(p, (0.32, 0, 0.175), (0.60, 0, 0.365), 0.148, 0.092, 0.80)
    body = _union(0.06, _union(0.07, _trunk(p), neck), _head(p))
    body = _union(0.05, body, *_legs(p))
    tail = _capsule(p, (-0.50, 0, 0.190), (-0.66, 0, 0.178), 0.072, 0.044)
    tail = _union(0.04, tail, _capsule(p, (-0.66, 0, 0.178), (-1.13, 0, 0.155), 0.044, 0.024))
    return _union(0.05, body, tail)


def _axis(cells):
    """Grid positions whose spacing follows `cells`."""
    position, size = np.array(cells).T
    fine = np.linspace(position[0], position[-1], 4001)
    density = 1 / (SPACING * np.interp(fine, position, size))
    steps = (density[1:] + density[:-1]) / 2 * np.diff(fine)
    count = np.concatenate([[0], np.cumsum(steps)])
    return np.interp(np.linspace(0, count[-1], round(count[-1]) + 1), count, fine)


def _grid():
    """(X, Y, Z, 3) points over the left half; the first cells straddle the plane y = 0."""
    x, y, z = (_axis(c) for c in CELLS)
    half_cell = y[1] / 2
    y = np.concatenate([[-half_cell], y + half_cell])
    p = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1)
    out = p.copy()
    for centre, width, strength in LENSES:
        for side in (1, -1) if centre[1] else (1,):
            d = p - np.array(centre) * (1, side, 1)
            square = (d * d).sum(-1, keepdims=True)
            out -= strength * np.exp(-square / (2 * width * width)) * d
    return out


def _surface_nets(points):
    """Dual polygons of the zero level: vertices (N, 3), quads (Q, 4) turned outwards, whether each
    vertex is on the mirror plane (N,)."""
    distance = body_distance(points)
    inside = distance < 0
    cells = np.array(distance.shape) - 1
    number = np.arange(cells.prod()).reshape(cells)
    total, count, quads = np.zeros((number.size, 3)), np.zeros(number.size), []
    for axis in range(3):
        lower, upper = [slice(None)] * 3, [slice(None)] * 3
        lower[axis], upper[axis] = slice(None, -1), slice(1, None)
        edge = np.argwhere(inside[tuple(lower)] != inside[tuple(upper)])
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
    used, index = np.unique(np.concatenate(quads), return_inverse=True)
    return total[used] / count[used, None], index.reshape(-1, 4), np.isin(used, number[:, 0])


def _onto_surface(v, plane, steps):
    """Moves points onto the zero level; those of the mirror plane stay in it. Returns them with the
    surface's gradient."""
    for _ in range(steps):
        h = 1e-4
        sides = [(body_distance(v + d), body_distance(v - d)) for d in h * np.eye(3)]
        gradient = np.stack([(ahead - behind) / (2 * h) for ahead, behind in sides], 1)
        step = body_distance(v) / np.maximum((gradient**2).sum(1), 0.05)
        v = v - np.clip(step, -0.02, 0.02)[:, None] * gradient
        v[plane, 1] = 0
    return v, gradient / np.maximum(norm(gradient), 1e-9)[:, None]


def undirected_edges(polygons) -> np.ndarray:
    """(E, 2) edges of polygons (N, k)."""
    k = polygons.shape[1]
    pairs = np.concatenate([polygons[:, [i, (i + 1) % k]] for i in range(k)])
    return np.unique(np.sort(pairs, 1), axis=0)


def corner_sums(faces, num_verts: int, order="C") -> scipy.sparse.csr_matrix:
    """(V, F) what sums values of faces at their corners; made once for a mesh.

    Args:
        faces: (F, 3).
        num_verts: V.
        order: sums go face by face ("C") or corner by corner ("F"), which decides the last bits.
    """
    vertex = faces.ravel(order)
    number = np.arange(len(faces))
    face = np.repeat(number, 3) if order == "C" else np.tile(number, 3)
    ends = np.concatenate([[0], np.cumsum(np.bincount(vertex, minlength=num_verts))])
    entries = np.ones(len(vertex)), face[np.argsort(vertex, kind="stable")], ends
    return scipy.sparse.csr_matrix(entries, shape=(num_verts, len(faces)))


def vertex_normals(verts, faces, sums: scipy.sparse.csr_matrix) -> np.ndarray:
    """Outward unit normals (V, 3), weighted by area.

    Args:
        verts: (V, 3).
        faces: (F, 3).
        sums: of `corner_sums`.
    """
    columns = np.ascontiguousarray(verts.T)  # column by column: numpy is slow on short rows
    (xi, yi, zi), (xj, yj, zj), (xk, yk, zk) = (
        [column.take(corner) for column in columns] for corner in np.ascontiguousarray(faces.T)
    )
    ax, ay, az, bx, by, bz = xj - xi, yj - yi, zj - zi, xk - xi, yk - yi, zk - zi
    face = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], 1)
    return unit(sums @ face, 1e-12)


def facing(plane, faces) -> np.ndarray:
    """The faces (N, 3) that turn their outside to the viewer: of a closed mesh, all that is seen.

    Args:
        plane: (V, 2 or more), x right and y up.
        faces: (F, 3), turned outwards.
    """
    x, y = np.ascontiguousarray(plane[:, :2].T)
    i, j, k = np.ascontiguousarray(faces.T)
    xi, yi = x.take(i), y.take(i)
    seen = (x.take(j) - xi) * (y.take(k) - yi) < (y.take(j) - yi) * (x.take(k) - xi)
    return faces.take(np.flatnonzero(seen), 0)


def cross(a, b) -> np.ndarray:
    """(3,) of two vectors: numpy's takes ten times as long on single ones."""
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )


def bounds(points) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest (C,) of the columns of points (N, C)."""
    columns = np.ascontiguousarray(points.T)
    return columns.min(1), columns.max(1)


def on_faces(values, corner, weight) -> np.ndarray:
    """Values at places on faces, between those of the corners.

    Args:
        values: (V, C) float32, of the vertices.
        corner: (N, 3) vertices of each place's face.
        weight: (N, 3) float32 barycentric coordinates.

    Returns:
        (N, C).
    """
    ends, shape = np.arange(0, corner.size + 1, 3), (len(corner), len(values))
    return scipy.sparse.csr_matrix((weight.ravel(), corner.ravel(), ends), shape) @ values


def unit(vectors, least=1e-6) -> np.ndarray:
    """Vectors (N, 3) of length 1, but for those shorter than `least`."""
    x, y, z = vectors.T
    length = np.maximum(np.sqrt(x * x + y * y + z * z), least)
    return np.stack([x / length, y / length, z / length], 1)


def build_mesh() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The template's mesh.

    Returns:
        verts: (V, 3), body units.
        faces: (F, 3), turned outwards.
        symmetry: (V,) index of each vertex's mirror image.
    """
    v, quads, plane = _surface_nets(_grid())
    v[plane, 1] = 0
    half, off_plane = len(v), np.flatnonzero(~plane)
    image = np.arange(half)
    image[off_plane] = half + np.arange(len(off_plane))
    symmetry = np.concatenate([image, off_plane])

    def both(v):
        return np.concatenate([v, v[off_plane] * (1, -1, 1)])

    edges = undirected_edges(np.concatenate([quads, image[quads]]))
    near = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(symmetry),) * 2)
    near = near.tocsr()
    near = near + near.T
    smoothing = scipy.sparse.diags(1 / np.asarray(near.sum(1)).ravel()) @ near
    v, normal = _onto_surface(v, plane, 3)
    for _ in range(12):  # even out the polygons along the surface
        shift = (smoothing @ both(v))[:half] - v
        shift -= (shift * normal).sum(1, keepdims=True) * normal
        v += 0.5 * shift
        v[plane, 1] = 0
        v, normal = _onto_surface(v, plane, 1)
    v, _ = _onto_surface(v, plane, 2)
    first = norm(v[quads[:, 0]] - v[quads[:, 2]]) <= norm(v[quads[:, 1]] - v[quads[:, 3]])
    cuts = [([0, 1, 2], [0, 1, 3]), ([0, 2, 3], [1, 2, 3])]  # along the short diagonal
    triangles = [np.where(first[:, None], quads[:, one], quads[:, other]) for one, other in cuts]
    faces = np.concatenate(triangles)
    return both(v), np.concatenate([faces, image[faces][:, ::-1]]), symmetry
