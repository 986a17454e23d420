"""Tools for all rooms: files, the cache folder, progress, memory, intervals, settings, masking, templates, assets."""
