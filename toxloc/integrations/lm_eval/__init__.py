"""Tasks for lm-evaluation-harness. This folder is the value for its option `--include_path`."""
