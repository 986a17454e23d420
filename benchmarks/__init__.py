"""Programs that measure the numbers quoted in the documentation; each runs as a command."""
