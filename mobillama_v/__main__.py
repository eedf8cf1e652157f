"""``python -m mobillama_v``: the command line."""

from mobillama_v.cli.main import main

if __name__ == "__main__":
    main()
