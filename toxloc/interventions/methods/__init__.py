"""The methods, one file per method; the registry imports every file of this folder."""
