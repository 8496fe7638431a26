"""Files made to harm: each is refused by name, in a process of its own."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import scipy.sparse

from smal_model.body_files import FAMILY_FILE, MODEL_FILE, SYMMETRY_FILE
from tests.sandbox import run_all
from tests.smal_model import tiny
from util.errors import InputError

TABLES, MATRICES = tiny.tables(), tiny.matrices()
MODEL = TABLES[f"smal/{MODEL_FILE}"]
BODY, SYMMETRY = f"smal/{MODEL_FILE}.pkl", f"smal/{SYMMETRY_FILE}.pkl"
FAMILY, PRIOR, UNITY = f"smal/{FAMILY_FILE}.pkl", f"{tiny.POSE_PRIOR}.pkl", "priors/unity_betas.npz"
HIERARCHY = tiny.HIERARCHY
GLOBALS = {
    "array": b"cnumpy.core.multiarray\n_reconstruct\n",
    "dtype": b"cnumpy\ndtype\n",
    "ndarray": b"cnumpy\nndarray\n",
    "encode": b"c_codecs\nencode\n",
    "set": b"c__builtin__\nset\n",
}


def _dtype_state() -> bytes:
    """A dtype whose state clears the flag that its field is an object: eight bytes, one pointer."""
    void, of_objects = (GLOBALS["dtype"] + b"(U\2%sI0\nI1\ntR" % name for name in (b"V8", b"O8"))
    state = b"(I3\nU\1|N(U\1ft}U\1f(" + of_objects + b"I0\ntsI8\nI1\nI0\nt"
    array = GLOBALS["array"] + b"(" + GLOBALS["ndarray"] + b"(I0\ntU\1btR"
    return b"\x80\2" + array + b"(I1\n(I4\nt" + void + state + b"bI00\nU\x20" + b"A" * 32 + b"tb."


def _shared_lists(levels=30, width=10, leaf=b"K\1") -> bytes:
    """Lists that hold one list ten times, level upon level."""
    out = b"\x80\2" + leaf
    for _ in range(levels):
        out += b"q\0" + b"0(" + b"h\0" * width + b"l"
    return out + b"."


def _huge_array(shape: int) -> bytes:
    return (
        b"\x80\2" + GLOBALS["array"] + GLOBALS["ndarray"] + b"\x8a\5" + struct.pack("<Q", shape)[:5]
        + b"\x85U\1b\x87R."
    )  # fmt: skip


def _shared_arrays() -> bytes:
    """One text of a MiB, of which a thousand arrays are made."""
    text = b"T" + struct.pack("<i", 2**20) + bytes(2**20) + b"q\0" + b"0"
    dtype = GLOBALS["dtype"] + b"U\2u1K\0K\1\x87Rq\1" + b"0"
    array = GLOBALS["array"] + GLOBALS["ndarray"] + b"K\0\x85U\1b\x87R"
    array += b"(K\1J\0\0\x10\0\x85h\1\x89h\0tb"
    return b"\x80\2" + text + dtype + b"(" + array * 1000 + b"l."


def _shared_bytes() -> bytes:
    text = (
        b"X"
        + struct.pack("<i", 2**20)
        + b"a" * 2**20
        + b"q\0"
        + b"0"
        + GLOBALS["encode"]
        + b"q\1"
        + b"0"
    )
    return b"\x80\2" + text + b"(" + b"h\1h\0\x85R" * 3000 + b"l."


PICKLES = {
    "dtype with the flag of objects cleared": _dtype_state(),
    "memo index": b"\x80\2Nr\xff\xff\xff\x0f.",
    "memo index in text": b"Np1300000000\n.",
    "memo index of many digits": b"Np" + b"9" * 100_000 + b"\n.",
    "length of text": b"\x80\2T\xff\xff\xff\x7f.",
    "length of bytes": b"\x80\4\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "length of a number": b"\x80\2\x8b\xff\xff\xff\x7f.",
    "length of a frame": b"\x80\4\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "lists that share lists": _shared_lists(),
    "shared lists as numbers": _shared_lists(9),
    "a list that holds itself": b"\x80\2]q\0h\0a.",
    "lists in lists": b"\x80\2" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "tuples in tuples": b"\x80\2)" + b"\x85" * 50_000 + b".",
    "an array of a tebibyte": _huge_array(2**39),
    "an array by its class": b"\x80\2" + GLOBALS["ndarray"] + b"J\xff\xff\xff\x7f\x85\x81.",
    "a thousand arrays of one text": _shared_arrays(),
    "thousands of encoded texts": _shared_bytes(),
    "a set of many sets": b"\x80\2(" + (GLOBALS["set"] + b"]\x85R") * 50_000 + b"l.",
    "many opcodes": b"\x80\2(" + b"N" * 3_000_000 + b"l.",
    "persistent object": b"Pa\n.",
    "old instance": b"(iposix\nsystem\n.",
    "extension": b"\x80\2\x82\1.",
    "nothing": b"",
    "a text": b"\x80\2U\1a.",
    "a number without bounds": b"\x80\2]" + b"\x8a\xff" + b"\x7f" * 255 + b"a.",
}


def _changed(stem: str, **values) -> bytes:
    return pickle.dumps(TABLES[stem] | values, protocol=2)


def _sparse(**parts) -> scipy.sparse.csc_matrix:
    matrix = MODEL["J_regressor"].copy()
    for name, value in parts.items():
        setattr(matrix, name, value)
    return matrix


def _with_nan(array) -> np.ndarray:
    array = np.array(array, np.float64)
    array.flat[-1] = np.nan
    return array


def _far_below(indptr) -> np.ndarray:
    """Rows in order only as long as nobody minds that their differences overflow."""
    indptr = indptr.astype(np.int64)
    indptr[-1] = -(2**63)
    return indptr


def _body(**values):
    return BODY, _changed(f"smal/{MODEL_FILE}", **values)


M = MODEL["J_regressor"]
LONG_TREE = np.stack([np.roll(MODEL["kintree_table"][0], 1), MODEL["kintree_table"][1]])
CONTENTS = {
    "regressor: wild index": _body(J_regressor=_sparse(indices=M.indices + 2**30)),
    "regressor: negative index": _body(J_regressor=_sparse(indices=M.indices - 2**20)),
    "regressor: rows without end": _body(J_regressor=_sparse(indptr=M.indptr + 2**30)),
    "regressor: rows backwards": _body(J_regressor=_sparse(indptr=M.indptr[::-1].copy())),
    "regressor: a row far below 0": _body(J_regressor=_sparse(indptr=_far_below(M.indptr))),
    "regressor: a wide shape": _body(J_regressor=_sparse(_shape=(2**20, tiny.V))),
    "regressor: half precision and NaN": _body(
        J_regressor=_sparse(data=_with_nan(M.data).astype(np.float16))
    ),
    "regressor: NaN": _body(J_regressor=_sparse(data=_with_nan(M.data))),
    "template: a wide sparse matrix": _body(v_template=scipy.sparse.csc_matrix((99_999, 3))),
    "template: NaN": _body(v_template=_with_nan(MODEL["v_template"])),
    "template: too large for float32": _body(v_template=MODEL["v_template"] * 1e39),
    "template: a number": _body(v_template=1.0),
    "weights: a long text and many short ones": _body(weights=["a" * 2**22] + ["a"] * 50_000),
    "weights: a long text in the second row": _body(weights=[[1.0], ["a" * 2**22] * 9_000]),
    "regressor: long texts": _body(J_regressor=_sparse(data=["a" * 2**22] + ["a"] * 50_000)),
    "regressor: a shape without bounds": _body(J_regressor=_sparse(_shape=(np.inf, tiny.V))),
    "weights: texts": _body(weights=[["a"] * tiny.J] * tiny.V),
    "weights: numbers beyond float": _body(weights=[[10**400] * tiny.J] * tiny.V),
    "shape directions: ragged": _body(shapedirs=[[1.0], [1.0, 2.0]]),
    "faces: fractions": _body(f=MODEL["f"] + 0.5),
    "faces: negative": _body(f=MODEL["f"].astype(np.int64) - 1),
    "faces: none": _body(f=np.zeros((0, 3), np.int64)),
    "tree: no root": _body(kintree_table=np.zeros((2, tiny.J), np.int64)),
    "tree: children before parents": _body(kintree_table=LONG_TREE),
    "landmarks: outside": _body(landmark_vertices=np.full(6, tiny.V)),
    "landmarks: five": _body(landmark_vertices=np.zeros(5, np.int64)),
    "mirror plane: outside": _body(mirror_plane_vertices=np.array([-1])),
    "mirror plane: none": _body(mirror_plane_vertices=np.zeros(0, np.int64)),
    "symmetry: outside": (SYMMETRY, pickle.dumps(np.array([0, 1, 2, 4]), 2)),
    "symmetry: negative": (SYMMETRY, pickle.dumps(np.array([0, 1, 2, -9]), 2)),
    "symmetry: numbers beyond int64": (SYMMETRY, pickle.dumps([10**30] * tiny.V, 2)),
    "symmetry: infinite": (SYMMETRY, pickle.dumps(np.full(tiny.V, np.inf), 2)),
    "families: NaN": (
        FAMILY,
        _changed(f"smal/{FAMILY_FILE}", cluster_means=np.full((2, 20), np.nan)),
    ),
    "families: no covariance": (
        FAMILY,
        _changed(f"smal/{FAMILY_FILE}", cluster_cov=[-np.eye(20), -np.eye(20)]),
    ),
    "families: singular": (
        FAMILY,
        _changed(f"smal/{FAMILY_FILE}", cluster_cov=[-1e-5 * np.eye(20)] * 2),
    ),
    "pose prior: shape": (PRIOR, _changed(tiny.POSE_PRIOR, pic=np.eye(104))),
    "pose prior: a mean of 104": (PRIOR, _changed(tiny.POSE_PRIOR, mean_pose=np.zeros(104))),
    "pose prior: NaN": (PRIOR, _changed(tiny.POSE_PRIOR, pic=_with_nan(np.eye(105)))),
    "unity: shape": (UNITY, tiny.npz({"mean": np.zeros(26), "cov": np.eye(26)})),
    "unity: NaN": (UNITY, tiny.npz({"mean": np.full(27, np.nan), "cov": np.eye(27)})),
}


def _hierarchy(key, index, **parts) -> dict:
    matrices = {k: list(v) for k, v in MATRICES.items()}
    matrix = matrices[key][index].copy()
    for name, value in parts.items():
        setattr(matrix, name, value)
    matrices[key][index] = matrix
    return matrices


def _saved(**changes) -> bytes:
    """The arrays of `MeshHierarchy.save`, some of them changed, or left out where None."""
    table = {"levels": np.array(3)}
    for key, matrices in MATRICES.items():
        for i, m in enumerate(map(scipy.sparse.csr_matrix, matrices)):
            for part in ("data", "indices", "indptr", "shape"):
                table[f"{key}{i}_{part}"] = np.asarray(getattr(m, part))
    table |= changes
    return tiny.npz({k: v for k, v in table.items() if v is not None})


def _patched(data: bytes, offset: int, value: bytes) -> bytes:
    """An archive in whose directory every entry has `value` at `offset`."""
    out, at = bytearray(data), -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        out[at + offset : at + offset + len(value)] = value
    return bytes(out)


def _bomb(mebibytes: int, declared: int | None = None) -> bytes:
    """An `.npz` whose one member unpacks to so many zeros; `declared` is what its entry says."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("A.npy", "w", force_zip64=True) as member:
            for _ in range(mebibytes):
                member.write(bytes(2**20))
    data = stream.getvalue()
    return data if declared is None else _patched(data, 24, struct.pack("<I", declared))


def _npy(header: str, data: bytes = b"", key: str = "A") -> bytes:
    text = header.encode("latin1") + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        content = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data
        archive.writestr(f"{key}.npy", content)
    return stream.getvalue()


def _many_members() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"x{i}.npy", b"")
    return stream.getvalue()


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
GOOD = tiny.npz(MATRICES)
U0 = scipy.sparse.csr_matrix(MATRICES["U"][0])
HIERARCHIES = {
    "wild index": tiny.npz(_hierarchy("U", 0, indices=MATRICES["U"][0].indices + 2**28)),
    "negative index": tiny.npz(_hierarchy("D", 0, indices=MATRICES["D"][0].indices - 2**28)),
    "rows without end": tiny.npz(_hierarchy("A", 0, indptr=MATRICES["A"][0].indptr + 2**28)),
    "NaN": tiny.npz(_hierarchy("U", 0, data=_with_nan(MATRICES["U"][0].data))),
    "a wide shape": tiny.npz(_hierarchy("A", 0, _shape=(4, 2**31 - 1))),
    "no square": tiny.npz(_hierarchy("A", 0, _shape=(4, 5))),
    "a level too many": tiny.npz(MATRICES | {"A": MATRICES["A"] * 2}),
    "thousands of levels": tiny.npz({k: v[:1] * 5000 for k, v in MATRICES.items()}),
    "one matrix for its levels": tiny.npz(
        {k: np.array(scipy.sparse.eye(50_000, format="csr"), object) for k in "ADU"}
    ),
    "no matrices": tiny.npz({k: np.zeros(3) for k in "ADU"}),
    "numbers for matrices": tiny.npz({k: [1, 2, 3] for k in "ADU"}),
    "saved: an array missing": _saved(A0_data=None),
    "saved: no levels": _saved(levels=None),
    "saved: many levels": _saved(levels=np.array(10**9)),
    "saved: levels below 0": _saved(levels=np.array(-1)),
    "saved: infinite levels": _saved(levels=np.array(np.inf)),
    "saved: a row of levels": _saved(levels=np.arange(3)),
    "saved: wild index": _saved(U0_indices=U0.indices + 2**28),
    "saved: rows without end": _saved(U0_indptr=U0.indptr + 2**28),
    "saved: a row far below 0": _saved(U0_indptr=_far_below(U0.indptr)),
    "saved: a wide shape": _saved(A0_shape=np.array([4, 2**40])),
    "saved: an infinite shape": _saved(A0_shape=np.array([np.inf, 4])),
    "saved: a shape of three": _saved(A0_shape=np.array([4, 4, 4])),
    "saved: NaN": _saved(U0_data=_with_nan(U0.data)),
    "unpacks to a gibibyte": _bomb(1024),
    "unpacks to more than it says": _bomb(1024, declared=100),
    "a header of a tebibyte": _npy(HEADER % ("<f8", "(137438953472,)"), bytes(64)),
    "a header of many dimensions": _npy(HEADER % ("<f8", "(" + "1," * 60 + ")"), bytes(8)),
    "a header of objects and no pickle": _npy(HEADER % ("|O", "(5,)")),
    "a header that does not end": _npy("{'descr': '<f8', 'shape': ("),
    "a header of brackets": _npy("(" * 9000),
    "a header of a structure": _npy(
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': ()}"
    ),
    "an unknown compression": _patched(GOOD, 10, b"\x61\0"),
    "an unpacked version of the future": _patched(GOOD, 6, b"\xff\0"),
    "bzip2": _patched(GOOD, 10, b"\x0c\0"),
    "encrypted": _patched(GOOD, 8, b"\1\0"),
    "many members": _many_members(),
    "no archive": b"PK",
}
ATTACKS = {
    **{f"pickle: {k}": (SYMMETRY, v, tiny.use_body) for k, v in PICKLES.items()},
    **{k: (*v, tiny.use_family) for k, v in CONTENTS.items() if "smal/" in v[0]},
    **{k: (*v, tiny.use_pose_prior) for k, v in CONTENTS.items() if v[0] == PRIOR},
    **{k: (*v, tiny.use_unity_betas) for k, v in CONTENTS.items() if v[0] == UNITY},
    **{f"hierarchy: {k}": (HIERARCHY, v, tiny.use_hierarchy) for k, v in HIERARCHIES.items()},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of each attack, and the memory that it took."""
    folder = tmp_path_factory.mktemp("data")
    tiny.write_all(folder)

    def attack(name):
        file, data, use = ATTACKS[name]
        (folder / file).write_bytes(data)
        use(folder)
        return "read"

    found, grown = {}, {}
    for name in ATTACKS:
        tiny.write_all(folder)
        (folder / UNITY).with_suffix(".pkl").unlink()
        (folder / UNITY).write_bytes(tiny.npz(TABLES["priors/unity_betas"]))
        (found[name],), grown[name] = run_all(attack, [name])
    return found, grown


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_and_the_file_named(outcomes, name):
    found, grown = outcomes
    stem = os.path.basename(ATTACKS[name][0]).split(".")[0]
    kind, _, sentence = found[name].partition(": ")
    assert kind in ("InputError", "UnsafeFileError") and stem in sentence, found[name]
    assert len(sentence) < 700, "a sentence"
    assert grown[name] < 700 * 2**20


def test_the_good_files_are_read(tmp_path):
    tiny.write_all(tmp_path)
    for use in (tiny.use_family, tiny.use_pose_prior, tiny.use_hierarchy, tiny.use_unity_betas):
        use(tmp_path)


def test_what_is_no_file_is_refused(tmp_path):
    tiny.write_all(tmp_path)
    path = tmp_path / SYMMETRY
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="symIdx.pkl is not a file"):
        tiny.use_body(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(InputError, match="symIdx.pkl is not a file"):
        tiny.use_body(tmp_path)
    path.unlink()
    with open(path, "wb") as file:
        file.truncate(2**36)
    with pytest.raises(InputError, match="symIdx.pkl is larger than 64 MiB"):
        tiny.use_body(tmp_path)
