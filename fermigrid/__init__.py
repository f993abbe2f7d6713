"""fermigrid: the submission frontend for Fermi-LAT batch work."""

__version__ = "0.1.0"
