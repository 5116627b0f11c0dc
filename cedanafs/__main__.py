"""`python -m cedanafs`."""

from cedanafs.cli import main

main()
