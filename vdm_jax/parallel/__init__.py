"""Meshes, sharding rules and agreement among hosts; sees only axis names, never a network.

chips.py      what one chip can do, with its public source
mesh.py       devices -> a mesh of four named axes
rules.py      logical axes -> mesh axes, a table for each strategy
place.py      where every array of a state lies
launch.py     how the processes of a run find each other
rollcall.py   that all are there, and told when one is gone
hosts.py      agreement among them, with a timeout
"""
