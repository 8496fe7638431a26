"""`python -m synthetic`: writes the embedded body and images of synthetic dogs."""

from util.errors import run_cli

from .writer import main

if __name__ == "__main__":
    run_cli(main)
