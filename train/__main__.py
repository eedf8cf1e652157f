"""``python -m mobillama_v.train RECIPE …``: the command without the rest of the command line."""

from __future__ import annotations

import os
import sys

from mobillama_v.cli.train import app
from mobillama_v.errors import MobiLlamaVError


def main() -> None:
    """Run the command; a user error is one line on stderr and exit code 2."""
    try:
        app()
    except MobiLlamaVError as error:
        rank = os.environ.get("RANK", "0")
        print(f"error{f' (process {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
