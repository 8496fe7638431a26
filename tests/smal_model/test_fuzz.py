"""A short slice of the fuzzing with a fixed seed, and pickles that Hypothesis makes."""

import io
import os
import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from smal_model.checks import build_sparse
from smal_model.safe_pickle import unpickle
from smal_model.tables import load_npz
from tests import fuzz_readers
from tests.sandbox import run_all
from util.errors import InputError

READERS = fuzz_readers.readers()
FIXED = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name):
    counts, found, _ = fuzz_readers.fuzz(READERS[name], range(150), seed=0)
    assert not found
    assert counts["refused"] > 50, "the damage must be real"


def test_the_sandbox_sees_what_an_input_does():
    jobs = [
        lambda: os.system("true"), lambda: eval("1 + 1"), lambda: bytearray(2**31), lambda: [][1],
        lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: len(b"x" * (200 * 2**20)),
    ]  # fmt: skip
    outcomes, grown = run_all(lambda job: job(), jobs)
    assert outcomes[:3] == ["code", "code", "memory"] and outcomes[3].startswith("IndexError")
    assert outcomes[4:] == ["killed by SIGKILL", str(200 * 2**20)]
    assert 190 * 2**20 < grown < 300 * 2**20


WILD = [-1, 3, 100, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), -(2**31), 0, 1]


def test_parts_of_sparse_matrices_make_one_or_are_refused():
    def job(seed):
        """A hundred matrices, of which some parts are wild or cut."""
        rng = np.random.default_rng(seed)
        made = 0
        for _ in range(100):
            data, indices, indptr = np.ones(3), np.arange(3), np.arange(4)
            for part in (indices, indptr):
                if rng.random() < 0.6:
                    part[rng.integers(len(part))] = WILD[rng.integers(len(WILD))]
            data, indices, indptr = (
                part[: rng.integers(5)] if rng.random() < 0.1 else part
                for part in (data, indices, indptr)
            )
            shape = (3, 3) if rng.random() < 0.8 else tuple(rng.integers(1, 5, 2))
            try:
                matrix = build_sparse(["csr", "csc"][rng.integers(2)], data, indices, indptr, shape)
            except ValueError:
                continue
            made += 1
            if matrix.toarray().sum() > 3 or (matrix.T.tocsr() != matrix.T).nnz:
                raise ArithmeticError("another matrix")
        return made

    outcomes, _ = run_all(job, range(10))
    assert all(outcome.isdigit() for outcome in outcomes), outcomes
    assert 50 < sum(map(int, outcomes)) < 500


def test_the_fuzzer_finds_a_fault():
    """A reader that lets an IndexError out at some inputs, and dies at one."""
    reader = READERS["symmetry"]
    first = reader.damaged(3, 0)

    def use(folder):
        data = (folder / reader.path).read_bytes()
        if data == first:
            os.kill(os.getpid(), signal.SIGKILL)
        [][len(data) % 2]

    counts, found, _ = fuzz_readers.fuzz(
        fuzz_readers.Reader(reader.path, reader.seeds, use), range(6), seed=0
    )
    assert counts == {"found": 6} and found.pop(3) == "killed by SIGKILL"
    assert all(outcome.startswith("IndexError") for outcome in found.values())


@FIXED
@given(
    st.lists(st.one_of(st.sampled_from(fuzz_readers.PIECES), st.binary(max_size=4)), max_size=40)
)
def test_pickles_made_of_pieces_are_read_or_refused(pieces):
    try:
        unpickle(b"\x80\2" + b"".join(pieces) + b".", "pieces.pkl")
    except InputError as error:
        assert str(error).startswith("pieces.pkl ")


DTYPES = st.one_of(
    arrays.boolean_dtypes(), arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(sizes=(16, 32, 64)),
)  # fmt: skip
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


def assert_equal(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable


@FIXED
@given(ARRAYS, st.integers(0, 5), st.booleans())
def test_arrays_come_back_from_every_protocol(array, protocol, fortran):
    array = np.asfortranarray(array) if fortran and array.ndim else array
    value = {"a": array, "list": [array, (1, -2.5, "text", None, True)]}
    found = unpickle(pickle.dumps(value, protocol=protocol), "a.pkl")
    assert_equal(found["a"], array)
    assert_equal(found["list"][0], array)
    assert found["list"][1] == (1, -2.5, "text", None, True)


@FIXED
@given(ARRAYS, st.booleans())
def test_arrays_come_back_from_npz(tmp_path_factory, array, compressed):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, a=array)
    path = tmp_path_factory.getbasetemp() / "a.npz"
    path.write_bytes(stream.getvalue())
    assert_equal(load_npz(path)["a"], array)
