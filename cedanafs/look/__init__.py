"""Looking at checkpoints: what a store holds, what CRIU saved, and how two of them differ."""

from cedanafs.look.summary import CheckpointSummary, inspect, list_store

__all__ = ["CheckpointSummary", "inspect", "list_store"]
