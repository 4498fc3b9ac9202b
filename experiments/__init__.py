"""One file per system: `get_config(variant)` returns a complete config made of shared parts."""
