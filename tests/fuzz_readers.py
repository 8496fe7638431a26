"""Feeds damaged body files to their readers and counts what happens.

    python -m tests.fuzz_readers --count 100000

Every input follows from the seed and its number. Anything but a good reading or an InputError that
names the file is a finding: it is printed and its bytes are kept in --keep.
"""

import argparse
import io
import os
import pickle
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smal_model.body_files import FAMILY_FILE, MODEL_FILE, SYMMETRY_FILE
from tests.sandbox import run_all
from tests.smal_model import tiny
from util.errors import InputError

# Pieces of which pickles are made, to be put in anywhere.
PIECES = [
    *(b"(", b")", b"]", b"}", b"l", b"d", b"t", b"a", b"e", b"s", b"u", b"R", b"b", b"\x81", b"."),
    *(b"\x85", b"\x86", b"\x87", b"N", b"\x88", b"0", b"1", b"2", b"q\0", b"h\0", b"\x94", b"\x93"),
    *(b"K\1", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"I01\n", b"I-1\n", b"Fnan\n", b"L1000000000L\n"),
    *(b"r\xff\xff\xff\x0f", b"j\xff\xff\xff\x0f", b"p1300000000\n", b"\x8b\xff\xff\xff\x7f"),
    *(b"T\xff\xff\xff\x7f", b"X\xff\xff\xff\xff", b"\x8e" + b"\xff" * 8, b"\x95" + b"\xff" * 8),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"U\2f8", b"U\2V8", b"U\1|", b"\x8f", b"\x90"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"),
    *(b"ccopy_reg\n_reconstructor\n", b"c__builtin__\nobject\n", b"cchumpy.ch\nCh\n"),
    *(b"cposix\nsystem\n", b"c__builtin__\neval\n", b"iposix\nsystem\n", b"\x82\1", b"U\4true"),
]
NUMBERS = [0, 1, 2, 4, 127, 255, 2**15, 2**16 - 1, 2**28 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four small changes, mostly where the data is not a long run of one byte."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            break
        for _ in range(4):
            i = int(rng.integers(len(out)))
            if len(set(out[max(0, i - 8) : i + 8])) > 2:
                break
        length = int(rng.choice([1, 2, 4, 8, 60]))
        match int(rng.integers(9)):
            case 0:
                out[i] ^= 1 << int(rng.integers(8))
            case 1:
                out[i] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
            case 2:
                del out[i : i + length]
            case 3:
                out[i:i] = out[i : i + length]
            case 4 | 5:
                out[i:i] = PIECES[int(rng.integers(len(PIECES)))]
            case 6:
                width = int(rng.choice([1, 2, 4, 8]))
                number = NUMBERS[int(rng.integers(len(NUMBERS)))] % 256**width
                out[i : i + width] = number.to_bytes(width, "little")
            case 7:
                j = int(rng.integers(len(out)))
                out[i : i + length] = out[j : j + length]
            case 8:
                if rng.random() < 0.3:
                    del out[i:]
    return bytes(out)


def mutate_zip(data: bytes, rng: np.random.Generator) -> bytes:
    """Damages one member and packs it again with a right checksum, or damages the archive."""
    if rng.random() < 0.25:
        return mutate(data, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            content = old.read(name)
            if name == chosen and rng.random() < 0.1:
                continue
            new.writestr(name, mutate(content, rng) if name == chosen else content)
    return stream.getvalue()


@dataclass
class Reader:
    """What is fed: one file of a data folder, several good versions of it, and its use."""

    path: str
    seeds: list[bytes]
    use: Callable[[Path], None]

    def damaged(self, number: int, seed: int) -> bytes:
        """Input `number`, always the same."""
        rng = np.random.default_rng([seed, number])
        good = self.seeds[int(rng.integers(len(self.seeds)))]
        return (mutate_zip if good[:2] == b"PK" else mutate)(good, rng)


def readers() -> dict[str, Reader]:
    """Every reader of body files."""
    with tempfile.TemporaryDirectory() as folder:
        saved = tiny.saved_hierarchy(Path(folder))
    tables = tiny.tables()
    model = tables[f"smal/{MODEL_FILE}"]

    def pickles(stem, names=()):
        return [tiny.chumpy_pickle(tables[stem], names, protocol) for protocol in (0, 2, 4, 5)]

    family, symmetry = tables[f"smal/{FAMILY_FILE}"], tables[f"smal/{SYMMETRY_FILE}"]
    bare = pickle.dumps(symmetry[SYMMETRY_FILE], protocol=0)  # as it is published
    unity = tables["priors/unity_betas"]
    names = ("v_template", "shapedirs", "posedirs")
    return {
        "body": Reader(
            f"smal/{MODEL_FILE}.pkl", pickles(f"smal/{MODEL_FILE}", names), tiny.use_body
        ),
        "body npz": Reader(f"smal/{MODEL_FILE}.npz", [tiny.npz(model)], tiny.use_body),
        "families": Reader(
            f"smal/{FAMILY_FILE}.pkl",
            [*pickles(f"smal/{FAMILY_FILE}"), tiny.chumpy_pickle(family, ["cluster_means"])],
            tiny.use_family,
        ),
        "symmetry": Reader(
            f"smal/{SYMMETRY_FILE}.pkl",
            [bare, bare.replace(b"\n", b"\r\n"), *pickles(f"smal/{SYMMETRY_FILE}")],
            tiny.use_body,
        ),
        "pose prior": Reader(
            f"{tiny.POSE_PRIOR}.pkl", pickles(tiny.POSE_PRIOR), tiny.use_pose_prior
        ),
        "unity betas": Reader("priors/unity_betas.npz", [tiny.npz(unity)], tiny.use_unity_betas),
        "hierarchy": Reader(
            tiny.HIERARCHY, [tiny.npz(tiny.matrices(), compressed=True)], tiny.use_hierarchy
        ),
        "saved hierarchy": Reader(tiny.HIERARCHY, [saved], tiny.use_hierarchy),
    }


def fuzz(reader: Reader, numbers: range, seed: int) -> tuple[Counter, dict[int, str], int]:
    """Feeds inputs to a reader.

    Args:
        reader: one of `readers`.
        numbers: of the inputs.
        seed: of the inputs.

    Returns:
        How often each outcome came; the findings by number; bytes by which the memory grew.
    """
    fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=fast) as name:
        folder = Path(name)
        tiny.write_all(folder)
        path = folder / reader.path
        path.with_suffix(".pkl").unlink(missing_ok=True)
        stem = path.stem.removesuffix(".npz")

        def job(number):
            path.write_bytes(reader.damaged(number, seed))
            try:
                reader.use(folder)
            except InputError as error:
                return "refused" if stem in str(error) else f"names no file: {error}"
            return "read"

        outcomes, grown = run_all(job, numbers)
    found = {
        number: outcome
        for number, outcome in zip(numbers, outcomes, strict=True)
        if outcome not in ("read", "refused")
    }
    counts = Counter("found" if n in found else o for n, o in zip(numbers, outcomes, strict=True))
    return counts, found, grown


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="inputs per reader")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="*", help="some of the readers (default: all)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of findings")
    args = parser.parse_args(argv)
    total = 0
    for name, reader in readers().items():
        if args.readers and name not in args.readers:
            continue
        begin = time.monotonic()
        numbers = range(args.start, args.start + args.count)
        counts, found, grown = fuzz(reader, numbers, args.seed)
        total += len(found)
        print(
            f"{name}: {args.count:,} inputs in {time.monotonic() - begin:.0f} s,"
            f" {counts['read']:,} read, {counts['refused']:,} refused, {len(found)} findings,"
            f" memory +{grown >> 20} MiB",
            flush=True,
        )
        for number, outcome in list(found.items())[:10]:
            print(f"  {number}: {outcome[:150]}", flush=True)
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                kept = args.keep / f"{name.replace(' ', '_')}_{args.seed}_{number}"
                kept.write_bytes(reader.damaged(number, args.seed))
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
