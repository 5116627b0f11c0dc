"""cedanafs: the checkpoint streamer that is a filesystem."""

__version__ = "0.1.0"
