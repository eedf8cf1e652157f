"""``python -m fuzz TARGET [options of libFuzzer] [corpus]``: fuzz one of the targets with atheris."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["mobillama_v", "PIL"]):
    from fuzz.targets import TARGETS, run


def main() -> None:
    """Run the target that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m fuzz {'|'.join(TARGETS)} [-max_total_time=60] [corpus folder]")
    name, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *options], lambda data: run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
