"""Running CRIU: options, conversation, log and process. Knows a directory path, no filesystem."""
