"""What every room uses: files, progress, memory, intervals, masking, templates and data files."""
