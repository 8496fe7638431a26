"""Meshes: adjacency, vertex normals, and constant sparse maps on their vertices."""

import warnings
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize

from util.vertex_kernels import kernels_for


class Csr(NamedTuple):
    """A sparse matrix: where its rows start, columns, values, and the shape (M, N)."""

    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    shape: tuple[int, int]


class _SparseProduct(torch.autograd.Function):
    """y[b] = M x[b] for one sparse M; its transpose is given, not built at each backward pass."""

    @staticmethod
    def forward(ctx, x, matrix: Csr, transpose: Csr):
        ctx.transpose = transpose
        return _product(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _product(ctx.transpose, grad), None, None


def _product(matrix: Csr, x):
    if kernels := kernels_for(x):
        return kernels.sparse_product(matrix[:3], matrix.shape[0], x)
    batch, rows, channels = x.shape
    flat = x.transpose(0, 1).reshape(rows, batch * channels).to(matrix.values.dtype)  # (V, B*C)
    with torch.autocast(
        x.device.type, enabled=False
    ):  # sparse products exist in float32 and float64
        product = _tensor(matrix) @ flat
    return product.view(matrix.shape[0], batch, channels).transpose(0, 1).to(x.dtype)


def _tensor(matrix: Csr) -> torch.Tensor:
    return torch.sparse_csr_tensor(*matrix, check_invariants=False)


class SparseMap(nn.Module):
    """A constant sparse matrix (M, N) applied to (B, N, C), giving (B, M, C).

    Args:
        matrix: (M, N), anything that SciPy turns into a CSR matrix.
    """

    def __init__(self, matrix):
        super().__init__()
        self.shape = matrix.shape
        for name, m in (("", matrix), ("t_", matrix.T)):
            m = scipy.sparse.csr_matrix(m)
            m.sort_indices()
            parts = {
                "rows": m.indptr.astype(np.int64),
                "columns": m.indices.astype(np.int64),
                "values": m.data.astype(np.float32),
            }
            for part, array in parts.items():
                self.register_buffer(name + part, torch.from_numpy(array), persistent=False)
        with warnings.catch_warnings():  # PyTorch says once a process that CSR tensors are in beta
            warnings.simplefilter("ignore")
            _tensor(self._csr(""))

    def _csr(self, name: str) -> Csr:
        shape = self.shape[::-1] if name else self.shape
        rows, columns, values = (
            getattr(self, name + part) for part in ("rows", "columns", "values")
        )
        return Csr(rows, columns, values, shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[1] != self.shape[1]:
            raise ValueError(
                f"a map from {self.shape[1]} to {self.shape[0]} vertices takes"
                f" (B, {self.shape[1]}, C), found {tuple(x.shape)}"
            )
        return _SparseProduct.apply(x, self._csr(""), self._csr("t_"))


def adjacency(faces, num_verts: int) -> scipy.sparse.csr_matrix:
    """(V, V) with 1 where two vertices share an edge of a face; nothing on the diagonal.

    Args:
        faces: (F, 3) indices of vertices.
        num_verts: V.
    """
    faces = np.asarray(faces)
    i, j = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    a = scipy.sparse.coo_matrix((np.ones(len(i)), (i, j)), shape=(num_verts, num_verts)).tocsr()
    a = ((a + a.T) > 0).astype(np.float64)
    a.setdiag(0)
    a.eliminate_zeros()
    return a


def vertex_normals(verts: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
    """Unit normals, the mean of the adjacent faces' weighted by area.

    The normal of corners a, b, c is (b - a) x (c - a): with z away from the viewer, corners that
    the viewer sees turn counter-clockwise have theirs pointing away. Faces that are not finite do
    not count.

    Args:
        verts: (B, V, 3).
        faces: (F, 3) int64 indices of vertices.

    Returns:
        (B, V, 3); 0 at vertices without a face.
    """
    corners = verts[:, faces.flatten()].view(len(verts), len(faces), 3, 3)
    first, second, third = corners.unbind(2)  # (B, F, 3) each
    face_normals = torch.linalg.cross(second - first, third - first, dim=2)  # (B, F, 3)
    face_normals = torch.where(face_normals.isfinite().all(2, keepdim=True), face_normals, 0)
    sums = torch.zeros_like(verts)
    for corner in range(3):
        sums.index_add_(1, faces[:, corner], face_normals)
    return normalize(sums, dim=2)
