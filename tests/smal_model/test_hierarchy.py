"""The mesh hierarchy: the published file, one built from a mesh, and the sparse products."""

import numpy as np
import pytest
import scipy.sparse
import torch

from smal_model import MeshHierarchy
from smal_model.mesh import SparseMap, adjacency
from util.errors import InputError


def _sphere(n=24):
    """A closed sphere: poles and n rings of 2n vertices."""
    theta = np.pi * np.arange(1, n) / n
    phi = np.pi * np.arange(2 * n) / n
    ring = np.stack(
        np.broadcast_arrays(
            np.sin(theta)[:, None] * np.cos(phi),
            np.sin(theta)[:, None] * np.sin(phi),
            np.cos(theta)[:, None],
        ),
        -1,
    )
    verts = np.concatenate([ring.reshape(-1, 3), [[0, 0, 1], [0, 0, -1]]])
    faces, m = [], 2 * n
    top, bottom = (n - 1) * m, (n - 1) * m + 1
    for j in range(m):
        k = (j + 1) % m
        faces += [[top, j, k], [bottom, (n - 2) * m + k, (n - 2) * m + j]]
        for i in range(n - 2):
            a, b, c, d = i * m + j, i * m + k, (i + 1) * m + j, (i + 1) * m + k
            faces += [[a, c, b], [b, c, d]]
    return verts, np.array(faces)


@pytest.fixture(scope="module")
def built():
    verts, faces = _sphere()
    return verts, faces, MeshHierarchy.build(verts, faces, (4, 4, 4))


def test_published_file(shared, golden):
    h = MeshHierarchy.load(shared / "samples" / "mesh_down_sampling_4.npz")
    assert h.sizes == [3889, 973, 244, 61, 16]
    g = golden("renderer")
    edges = adjacency(g["body_side/faces"], len(g["body_side/verts"][0]))
    assert ((h.matrices["A"][0] > 0) != (edges > 0)).nnz == 0  # level 0 is the body's own mesh


def test_built_levels_divide_as_asked_and_maps_keep_constants(built):
    verts, _, h = built
    for coarse, fine in zip(h.sizes[1:], h.sizes, strict=False):
        assert coarse == pytest.approx(fine / 4, rel=0.15)
    for key in "DU":
        for m in h.matrices[key]:
            np.testing.assert_allclose(np.asarray(m.sum(1)).ravel(), 1, atol=1e-9)
            assert m.data.min() >= -1e-9


def test_built_maps_keep_the_surface(built):
    verts, _, h = built
    x = torch.tensor(verts, dtype=torch.float32)[None]
    down = h.down(x, 0)
    # Selected vertices stay on the sphere; interpolated ones err by the edges' sagitta at most.
    torch.testing.assert_close(down.norm(dim=-1), torch.ones_like(down[..., 0]), atol=1e-5, rtol=0)
    assert (h.up(down, 0) - x).norm(dim=-1).max() < 0.15


def test_neighbours_is_the_mean_of_self_and_ring(built):
    verts, faces, h = built
    x = torch.randn(2, len(verts), 5, generator=torch.Generator().manual_seed(0))
    found = h.neighbours(x, 0)
    for i in (0, 17, len(verts) - 1):
        ring = {i, *faces[(faces == i).any(1)].ravel().tolist()}
        torch.testing.assert_close(found[:, i], x[:, sorted(ring)].mean(1))


def test_saved_file_is_the_same_and_holds_no_pickle(built, tmp_path):
    verts, _, h = built
    h.save(tmp_path / "h.npz")
    with np.load(tmp_path / "h.npz", allow_pickle=False) as f:
        assert all(f[k].dtype != object for k in f)
    again = MeshHierarchy.load(tmp_path / "h.npz")
    x = torch.randn(1, len(verts), 3)
    torch.testing.assert_close(again.up(again.down(x, 0), 0), h.up(h.down(x, 0), 0))


def test_sparse_map_equals_dense_in_values_and_gradients():
    rng = np.random.default_rng(0)
    matrix = scipy.sparse.random(
        7, 11, 0.4, random_state=rng, data_rvs=lambda size: rng.normal(size=size)
    )
    dense = torch.tensor(matrix.toarray())
    sparse = SparseMap(matrix).double()
    sparse.values.copy_(torch.tensor(scipy.sparse.csr_matrix(matrix).data))
    sparse.t_values.copy_(torch.tensor(scipy.sparse.csr_matrix(matrix.T).data))
    x = torch.randn(3, 11, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense @ x)
    (a,) = torch.autograd.grad((sparse(x) * weights).sum(), x)
    (b,) = torch.autograd.grad((dense @ x * weights).sum(), x)
    torch.testing.assert_close(a, b)


def test_faults_are_named(built, tmp_path):
    verts, faces, h = built
    with pytest.raises(ValueError, match="takes"):
        h.down(torch.zeros(1, 3, 3), 0)
    with pytest.raises(InputError, match="mesh hierarchy"):
        MeshHierarchy.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="lacks levels"):
        MeshHierarchy.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="fewer factors"):
        MeshHierarchy.build(verts, faces, (4, 4, 4, 4, 4, 4))
