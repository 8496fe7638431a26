"""Pickles read without running anything that they ask for.

The published body and prior files are Python 2 pickles with chumpy arrays and SciPy matrices
inside. They are read here by a stack machine of their own, without the `pickle` module: it knows
plain values and the few names that such files need, makes nothing but tokens while it runs, and
turns those into arrays when sizes and kinds have been checked. Any other name or opcode stops it.
"""

import codecs
import io
import pickletools
import struct
from typing import Any

import numpy as np

from util.errors import InputError

from .checks import (
    MAX_DEPTH,
    MAX_ITEMS,
    Budget,
    build_array,
    build_sparse,
    num_elements,
    plain_dtype,
    printable,
    read_bytes,
)


class UnsafeFileError(InputError):
    """A pickle asks for a name or an opcode outside the admitted list."""


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("__builtin__", "builtins")
_ADMITTED = {
    **{(m, n): n for m in _MULTIARRAY for n in ("_reconstruct", "scalar")},
    **{(m, "_frombuffer"): "_frombuffer" for m in _NUMERIC},
    **{("numpy", n): n for n in ("ndarray", "dtype")},
    ("_codecs", "encode"): "encode",  # how Python 3 writes bytes at protocol 2
    **{(m, n): n for m in _BUILTINS for n in ("object", "set", "bytes")},
    **{(m, "_reconstructor"): "_reconstructor" for m in ("copy_reg", "copyreg")},
    **{(m, "Ch"): "chumpy" for m in ("chumpy", "chumpy.ch")},
    **{(f"scipy.sparse.{p}{n}", f"{n}_matrix"): n for n in ("csc", "csr") for p in ("", "_")},
}
_OBJECTS = ("chumpy", "csc", "csr")  # kinds of objects; the other names are functions and classes


class _Name:
    """An admitted name."""

    def __init__(self, kind):
        self.kind = kind


class _Token:
    """Something that an admitted name is asked to make; `state` is what BUILD gives it."""

    def __init__(self, kind, args=()):
        self.kind, self.args, self.state = kind, args, None


_VALUES = {
    *("FLOAT", "BINFLOAT", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}  # opcodes whose argument is the value
_CONSTANTS: dict[str, Any] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple},
}
_NOTHING = ("PROTO", "FRAME", "STOP")


class _Machine:
    """Executes a pickle's opcodes; every method but `run` is one of them. Sets become lists."""

    def __init__(self, budget: Budget):
        self.budget = budget
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes):
        for name, arg in _opcodes(data):
            if name in _VALUES:
                self.stack.append(arg)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif hasattr(self, name):
                getattr(self, name)(arg)
            elif name not in _NOTHING:
                raise UnsafeFileError(f"it uses the opcode {name}, which body files do not need")
        return self.stack.pop()

    def MARK(self, arg):
        self.outer.append(self.stack)
        self.stack = []

    def POP_MARK(self, arg):
        items, self.stack = self.stack, self.outer.pop()
        return items

    def POP(self, arg):
        self.stack.pop()

    def DUP(self, arg):
        self.stack.append(self.stack[-1])

    def PUT(self, index):
        if not 0 <= index < 2 * MAX_ITEMS:
            raise ValueError(f"memo index {index}")
        self.memo[index] = self.stack[-1]

    def MEMOIZE(self, arg):
        self.memo[len(self.memo)] = self.stack[-1]

    def GET(self, index):
        self.stack.append(self.memo[index])

    BINPUT = LONG_BINPUT = PUT
    BINGET = LONG_BINGET = GET

    def APPEND(self, arg):
        self._extend([self.stack.pop()])

    def APPENDS(self, arg):
        self._extend(self.POP_MARK(arg))

    ADDITEMS = APPENDS

    def _extend(self, items):
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    def SETITEM(self, arg):
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def SETITEMS(self, arg):
        self._update(self.POP_MARK(arg))

    def _update(self, items):
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise ValueError("it sets items of what is no dict")
        for key in items[::2]:  # hashes of large numbers could be made to collide
            if type(key) is not str and not (type(key) is int and abs(key) < 2**31):
                raise ValueError("a key is no text and no small number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def LIST(self, arg):
        items = self.POP_MARK(arg)
        self.stack.append(items)

    FROZENSET = LIST

    def DICT(self, arg):
        items = self.POP_MARK(arg)
        self.stack.append({})
        self._update(items)

    def TUPLE(self, arg):
        items = self.POP_MARK(arg)
        self.stack.append(tuple(items))

    def _tuple(self, length):
        items = [self.stack.pop() for _ in range(length)]
        self.stack.append(tuple(items[::-1]))

    def TUPLE1(self, arg):
        self._tuple(1)

    def TUPLE2(self, arg):
        self._tuple(2)

    def TUPLE3(self, arg):
        self._tuple(3)

    def GLOBAL(self, arg):
        module, _, name = arg.partition(" ")
        self._name(module, name)

    def STACK_GLOBAL(self, arg):
        name, module = self.stack.pop(), self.stack.pop()
        self._name(module, name)

    def _name(self, module, name):
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        if (module, name) not in _ADMITTED:
            raise UnsafeFileError(f"it asks for {module}.{name}, which body files do not need")
        self.stack.append(_Name(_ADMITTED[module, name]))

    def REDUCE(self, arg):
        args, name = self.stack.pop(), self.stack.pop()
        if type(name) is not _Name or type(args) is not tuple:
            raise UnsafeFileError("it calls what is no admitted name")
        self.stack.append(_call(name.kind, args, self.budget))

    NEWOBJ = REDUCE

    def BUILD(self, arg):
        state = self.stack.pop()
        if type(self.stack[-1]) is not _Token:
            raise UnsafeFileError("it sets the state of what is no array or matrix")
        self.stack[-1].state = state


def _opcodes(data):
    """(name, argument) of each opcode up to STOP; lengths are checked against the data."""
    stream = io.BytesIO(data)
    for _ in range(MAX_ITEMS):
        opcode = pickletools.code2op.get(stream.read(1).decode("latin1"))
        if opcode is None:
            raise ValueError("an unknown opcode, or no end")
        if opcode.name == "STRING":  # pickletools takes its escapes for ASCII
            line = stream.readline()
            if len(line) < 3 or line[:1] not in (b"'", b'"') or line[-2:] != line[:1] + b"\n":
                raise ValueError("a text without quotes")
            yield opcode.name, codecs.escape_decode(line[1:-2])[0].decode("latin1")
        else:
            yield opcode.name, opcode.arg.reader(stream) if opcode.arg else None
        if opcode.name == "STOP":
            return
    raise ValueError(f"more than {MAX_ITEMS:,} opcodes")


def _call(kind, args, budget):
    """What an admitted name makes of its arguments."""
    if kind == "_reconstructor":  # of copyreg: an object without its state
        cls, base = args[:2]
        if type(cls) is not _Name or cls.kind not in _OBJECTS or base.kind != "object":
            raise UnsafeFileError("it rebuilds what is no chumpy array or SciPy matrix")
        return _Token(cls.kind)
    if kind == "bytes" and not args:  # how Python 3 writes no bytes at protocol 2
        return b""
    if kind == "encode":
        budget.pay(0, len(args[0]))
        return args[0].encode("latin1")
    if kind == "set":
        return args[0] if args else []
    if kind in ("object", "ndarray", "bytes"):
        raise UnsafeFileError(f"it calls {kind}, which body files do not need")
    return _Token(kind, args)


def _plain(value, budget: Budget, depth: int = 0):
    """The value with arrays for tokens; what is shared is made, and paid for, each time."""
    budget.pay(1)
    if depth > MAX_DEPTH:
        raise ValueError(f"its lists are more than {MAX_DEPTH} deep")
    if type(value) is dict:
        return {k: _plain(v, budget, depth + 1) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(v, budget, depth + 1) for v in value)
    if type(value) is _Token:
        return _MAKERS[value.kind](value, budget, depth + 1)
    if type(value) is _Name:
        raise ValueError(f"it holds the name {value.kind}")
    return value


def _bytes(raw):
    return raw.encode("latin1") if type(raw) is str else bytes(memoryview(raw))


def _make_dtype(token, budget=None, depth=0):
    """Plain kinds alone; the state may set nothing but the byte order."""
    order, *compound = token.state[1:5] if token.state else "|"
    if any(part is not None for part in compound):
        raise ValueError("an array has a compound dtype")
    return plain_dtype(order + token.args[0])


def _dtype(token):
    if type(token) is not _Token or token.kind != "dtype":
        raise ValueError("an array without a dtype")
    return _make_dtype(token)


def _make_array(token, budget, depth):
    shape, dtype, fortran, raw = token.state[-4:]
    dtype = _dtype(dtype)
    if not dtype.hasobject:
        return build_array(_bytes(raw), dtype, shape, fortran, budget)
    if type(raw) is not list or num_elements(shape) != len(raw):
        raise ValueError("an array of objects does not hold as many as its shape says")
    array = np.empty(len(raw), object)
    for i, value in enumerate(raw):
        array[i] = _plain(value, budget, depth)
    return array.reshape(shape, order="F" if fortran else "C")


def _make_frombuffer(token, budget, depth):
    """How NumPy writes arrays at protocol 5."""
    raw, dtype, shape, order = token.args
    return build_array(_bytes(raw), _dtype(dtype), shape, order == "F", budget)


def _make_scalar(token, budget, depth):
    dtype, raw = token.args
    return build_array(_bytes(raw), _dtype(dtype), (), False, budget)[()]


def _make_chumpy(token, budget, depth):
    return _plain(token.state["x"], budget, depth)  # its value; the rest is chumpy's bookkeeping


def _make_sparse(token, budget, depth):
    budget.pay(1000)  # it takes as long as so many values
    state = token.state
    shape = "_shape" if "_shape" in state else "shape"
    parts = [_plain(state[k], budget, depth) for k in ("data", "indices", "indptr", shape)]
    return build_sparse(token.kind, *parts)


_MAKERS = {
    "dtype": _make_dtype,
    "_reconstruct": _make_array,
    "_frombuffer": _make_frombuffer,
    "scalar": _make_scalar,
    "chumpy": _make_chumpy,
    **dict.fromkeys(("csr", "csc"), _make_sparse),
}
# What the steps above raise where a file is damaged or made to deceive.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error)


def unpickle(data: bytes, source, budget: Budget | None = None) -> Any:
    """Reads a pickle from memory.

    Args:
        data: the pickle, Python 2 or 3, any protocol.
        source: what to call it in an error, usually its path.
        budget: what may still be made from the same file; a whole one where None.

    Returns:
        The pickled value, with chumpy arrays as NumPy arrays and SciPy matrices as such.

    Raises:
        UnsafeFileError: it asks for a name outside the admitted list; nothing of it is run.
        InputError: it is damaged, or would make more than `checks` allows.
    """
    if not data.startswith(b"\x80"):  # protocol 0 is text; Windows tools end its lines with CRLF
        data = data.replace(b"\r\n", b"\n")
    try:
        budget = budget or Budget()
        return _plain(_Machine(budget).run(data), budget)
    except UnsafeFileError as e:
        raise UnsafeFileError(
            f"{source} is a pickle that was not read: {printable(e)}. Take the file from its"
            " publisher again."
        ) from None
    except _DAMAGE as e:
        raise InputError(
            f"{source} is not a readable pickle ({type(e).__name__}: {printable(e)}); download it"
            " again."
        ) from None


def load_pickle(path) -> Any:
    """Reads a pickle file; see `unpickle`."""
    return unpickle(read_bytes(path), path)
