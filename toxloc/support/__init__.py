"""Tools that every room uses: files, the cache folder, progress, memory, intervals, masking, templates, assets."""
