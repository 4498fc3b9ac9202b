"""What a run would be on a machine that is not here: memory, collectives, time, money.

    topology.py   a name such as v5e:16x16 -> devices to compile for
    compiled.py   the real step through the real compiler: memory and optimised HLO
    hlo.py        the HLO as computations, and how often each runs
    traffic.py    collectives and bytes of memory, from the HLO
    mix.py        which examples a step holds, from the manifest or a documented stand-in
    work.py       floating-point operations, counted in the traced step and block by block
    roofline.py   from work, bytes and peaks to seconds, between two bounds
    machine.py    all of these for one config on one topology
    search.py     meshes, remat and rows per device, ranked
    cost.py       days, chip-hours, money
    local.py      this machine: memory, three steps by the clock, what would fit

Every figure says where it is from: `counted` by us, `compiler`, or `predicted` by the roofline.
"""
