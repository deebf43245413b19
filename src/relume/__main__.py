"""`python -m relume` is `relume`."""

from relume.cli import main

main(prog_name="relume")
