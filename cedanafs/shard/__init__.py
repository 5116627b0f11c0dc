"""Checkpoints as N shard files: records, frames, index, commit. Knows neither FUSE nor CRIU."""
