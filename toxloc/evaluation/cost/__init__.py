"""Cost of an intervention in language quality."""
