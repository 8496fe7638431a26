"""Coverage-guided fuzzing of one reader of body files, where atheris is installed.

    python -m tests.fuzz_atheris symmetry -max_total_time=600

What follows the reader's name goes to libFuzzer. A crash, an exception that is no InputError naming
the file, ten seconds for one input, or 1 GiB of memory ends it.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["smal_model"]):
    from tests import fuzz_readers
    from tests.smal_model import tiny
    from util.errors import InputError


def main():
    reader = fuzz_readers.readers()[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name) / "data", Path(name) / "corpus"
        tiny.write_all(folder)
        path = folder / reader.path
        path.with_suffix(".pkl").unlink(missing_ok=True)
        corpus.mkdir()
        for i, seed in enumerate(reader.seeds):
            (corpus / str(i)).write_bytes(seed)

        def test_one_input(data):
            path.write_bytes(data)
            try:
                reader.use(folder)
            except InputError as error:
                if path.stem not in str(error):
                    raise RuntimeError("the file is not named") from error

        limits = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=100000"]
        atheris.Setup([*sys.argv, *limits, str(corpus)], test_one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
