"""Mesh hierarchy of the graph network: adjacency, down- and up-sampling of one body's mesh."""

from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from scipy.spatial import cKDTree
from torch import nn

from util.errors import InputError
from util.files import atomic_write

from .checks import MAX_LEVELS, MAX_NUMBERS, build_sparse, integers
from .mesh import SparseMap, adjacency
from .tables import load_npz, require

HIERARCHY_FILE = "mesh_down_sampling_4.npz"  # its name in a data folder
_PARTS = ("data", "indices", "indptr", "shape")  # of a CSR matrix, in a file of `save`


class MeshHierarchy(nn.Module):
    """Levels 0 (the whole mesh) to L of one mesh, with maps between them as sparse products.

    Args:
        matrices: SciPy sparse matrices; `A`: L + 1 adjacencies (V_l, V_l), `D`: L maps to the next
            coarser level (V_{l+1}, V_l), `U`: L maps back (V_l, V_{l+1}).
    """

    def __init__(self, matrices: dict):
        super().__init__()
        a, d, u = ([scipy.sparse.csr_matrix(m) for m in matrices[k]] for k in "ADU")
        sizes = [m.shape[0] for m in a]
        if not a or any(m.shape[0] != m.shape[1] for m in a):
            raise ValueError(
                f"the adjacencies have shapes {[m.shape for m in a]}; expected squares"
            )
        if len(d) != len(a) - 1 or len(u) != len(a) - 1:
            raise ValueError(
                f"{len(a)} adjacencies with {len(d)} down and {len(u)} up maps; expected one map"
                " less than levels"
            )
        for level, (down, up) in enumerate(zip(d, u, strict=True)):
            if down.shape != (sizes[level + 1], sizes[level]) or up.shape != down.shape[::-1]:
                raise ValueError(
                    f"maps between levels {level} and {level + 1} are {down.shape} and {up.shape};"
                    f" the levels have {sizes} vertices"
                )
        self.matrices = {"A": a, "D": d, "U": u}
        self.sizes = sizes
        self._neighbours = nn.ModuleList(SparseMap(_mean_over_neighbours(m)) for m in a)
        self._down = nn.ModuleList(map(SparseMap, d))
        self._up = nn.ModuleList(map(SparseMap, u))

    def down(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """From a level to the next coarser one: (B, V_l, C) -> (B, V_{l+1}, C)."""
        return self._down[level](x)

    def up(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """Back to a level from the next coarser one: (B, V_{l+1}, C) -> (B, V_l, C)."""
        return self._up[level](x)

    def neighbours(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """The mean over each vertex and its neighbours: (B, V_l, C) -> (B, V_l, C)."""
        return self._neighbours[level](x)

    @classmethod
    def load(cls, path) -> "MeshHierarchy":
        """Reads a hierarchy.

        Args:
            path: the published `mesh_down_sampling_4.npz` (pickled matrices) or one of `save`.

        Raises:
            InputError: the file is missing, cannot be read or its matrices do not fit together.
        """
        if not Path(path).exists():
            raise InputError(
                f"{path} is missing: the mesh hierarchy published with the method, or one of"
                " MeshHierarchy.build"
            )
        table = load_npz(path, keys=("A", "D", "U", "levels"))
        try:
            if "A" not in table:
                matrices = _read_saved(path, table)
            else:
                require(table, "ADU", path)
                if not all(isinstance(table[k], list | np.ndarray) for k in "ADU"):
                    raise ValueError("expected A, D and U as rows of matrices")
                matrices = {k: list(table[k]) for k in "ADU"}
            flat = [m for k in "ADU" for m in matrices[k]]
            if len(flat) > 3 * MAX_LEVELS or not all(map(scipy.sparse.issparse, flat)):
                raise ValueError(f"expected sparse matrices of up to {MAX_LEVELS} levels")
            if sum(m.nnz for m in flat) > MAX_NUMBERS:
                raise ValueError(f"its matrices hold more than {MAX_NUMBERS:,} numbers")
            return cls(matrices)
        except InputError:
            raise
        except (TypeError, ValueError) as e:
            raise InputError(f"{path} holds no mesh hierarchy: {e}.") from None

    def save(self, path) -> None:
        """Writes the matrices as plain arrays (no pickles)."""
        table = {"levels": np.array(len(self.sizes))}
        for key, matrices in self.matrices.items():
            for i, m in enumerate(matrices):
                table |= {f"{key}{i}_{part}": np.asarray(getattr(m, part)) for part in _PARTS}
        with atomic_write(path) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **table)

    @classmethod
    def build(cls, verts, faces, factors=(4, 4, 4, 4)) -> "MeshHierarchy":
        """Builds levels by quadric edge collapse (Garland and Heckbert, SIGGRAPH 1997).

        Down-sampling takes the nearest vertex of the finer level; up-sampling interpolates linearly
        on the nearest triangle of the coarser one.

        Args:
            verts: (V, 3).
            faces: (F, 3) indices of vertices.
            factors: by how much each level divides the number of vertices.
        """
        import fast_simplification

        verts, faces = np.asarray(verts, np.float64), np.asarray(faces)
        a, d, u = [adjacency(faces, len(verts))], [], []
        for factor in factors:
            # Faces of a closed surface with V / factor vertices.
            target = max(4, round(2 * len(verts) / factor) - 4)
            coarse, coarse_faces = fast_simplification.simplify(
                verts.astype(np.float32), faces.astype(np.int32), target_count=target, agg=5
            )
            if not 4 <= len(coarse) < len(verts):
                raise ValueError(
                    f"a mesh of {len(verts)} vertices cannot be divided by {factor} (came to"
                    f" {len(coarse)}); use fewer factors"
                )
            d.append(_selection(cKDTree(verts).query(coarse)[1], len(verts)))
            u.append(_interpolation(verts, coarse.astype(np.float64), coarse_faces))
            verts, faces = coarse.astype(np.float64), coarse_faces
            a.append(adjacency(faces, len(verts)))
        return cls({"A": a, "D": d, "U": u})


def _read_saved(path, table):
    """The matrices of a file of `save`."""
    require(table, ("levels",), path)
    levels = int(integers(table, "levels", path, 0))
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"{levels} levels; expected 1 to {MAX_LEVELS}")
    names = {k: [f"{k}{i}" for i in range(levels - (k != "A"))] for k in "ADU"}
    keys = [f"{name}_{part}" for k in "ADU" for name in names[k] for part in _PARTS]
    table = load_npz(path, keys)
    require(table, keys, path)
    return {
        k: [build_sparse("csr", *(table[f"{name}_{part}"] for part in _PARTS)) for name in names[k]]
        for k in "ADU"
    }


def _mean_over_neighbours(a) -> scipy.sparse.csr_matrix:
    """Binarised adjacency plus self, each row divided by its count."""
    a = (abs(scipy.sparse.csr_matrix(a)) > 0).astype(np.float64) + scipy.sparse.eye(a.shape[0])
    return scipy.sparse.diags(1 / np.asarray(a.sum(1)).ravel()) @ a


def _selection(indices, num_columns):
    """(N, V) matrix that takes the vertices `indices`."""
    rows = np.arange(len(indices))
    return scipy.sparse.csr_matrix(
        (np.ones(len(indices)), (rows, indices)), shape=(len(indices), num_columns)
    )


def _interpolation(points, verts, faces, candidates=24):
    """(N, V) barycentric weights of each point's nearest place on the triangles around it."""
    corners = verts[faces]  # (F, 3, 3)
    near = cKDTree(corners.mean(1)).query(points, k=min(candidates, len(faces)))[1]
    near = near.reshape(len(points), -1)  # (N, K)
    bary = _closest_barycentric(points[:, None], corners[near])  # (N, K, 3)
    place = (bary[..., None] * corners[near]).sum(2)  # (N, K, 3)
    best = ((place - points[:, None]) ** 2).sum(-1).argmin(1)
    rows = np.arange(len(points))
    columns = faces[near[rows, best]]  # (N, 3)
    return scipy.sparse.csr_matrix(
        (bary[rows, best].ravel(), (np.repeat(rows, 3), columns.ravel())),
        shape=(len(points), len(verts)),
    )


def _closest_barycentric(p, tri):
    """(..., K, 3) of the point of each triangle (..., K, 3, 3) nearest to p (..., 1, 3)."""
    a, b, c = tri[..., 0, :], tri[..., 1, :], tri[..., 2, :]

    def on_edge(start, end):
        edge = end - start
        return np.clip(((p - start) * edge).sum(-1) / np.maximum((edge**2).sum(-1), 1e-20), 0, 1)

    t_ab, t_bc, t_ca = on_edge(a, b), on_edge(b, c), on_edge(c, a)
    zero = np.zeros_like(t_ab)
    e1, e2, d = b - a, c - a, p - a
    n11, n12, n22 = (e1 * e1).sum(-1), (e1 * e2).sum(-1), (e2 * e2).sum(-1)
    det = np.maximum(n11 * n22 - n12**2, 1e-30)
    d1, d2 = (d * e1).sum(-1), (d * e2).sum(-1)
    v, w = (n22 * d1 - n12 * d2) / det, (n11 * d2 - n12 * d1) / det
    options = np.stack(
        [
            np.stack([1 - v - w, v, w], -1),
            np.stack([1 - t_ab, t_ab, zero], -1),
            np.stack([zero, 1 - t_bc, t_bc], -1),
            np.stack([t_ca, zero, 1 - t_ca], -1),
        ],
        -2,
    )  # (..., K, 4, 3): inside, then the three edges
    places = (options[..., None] * tri[..., None, :, :]).sum(-2)  # (..., K, 4, 3)
    distance = ((places - p[..., None, :]) ** 2).sum(-1)  # (..., K, 4)
    inside = (options[..., 0, :] >= 0).all(-1)
    distance[..., 0] = np.where(inside, distance[..., 0], np.inf)
    nearest = distance.argmin(-1)[..., None, None]
    return np.take_along_axis(options, nearest, -2).squeeze(-2)
