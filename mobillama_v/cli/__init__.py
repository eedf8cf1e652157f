"""The command line, one module a group of commands; :mod:`mobillama_v.cli.main` is the program."""
