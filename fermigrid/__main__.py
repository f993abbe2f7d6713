"""`python -m fermigrid`."""

from fermigrid.cli import main

main()
