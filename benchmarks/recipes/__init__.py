"""How the small models that come with toxloc were made: scripts that run, given the data, which is not included."""
