"""Language models: loading them, and reading and changing what happens inside."""
