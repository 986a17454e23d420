"""What an intervention costs in language quality."""
