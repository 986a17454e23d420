"""The methods, a file each; the registry finds every file of this folder."""
