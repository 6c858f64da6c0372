"""What every Millrace service shares: contracts, settings, the bus and the life of a process."""

__version__ = "0.1.0"
