"""Meshes, sharding rules and agreement among hosts; sees only axis names, never a network."""
