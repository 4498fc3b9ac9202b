"""Networks in flax.linen: they see a carrier, a time per example and a `Cond`, never a schedule.

    layers.py      norms, feed-forward layers, time embedding, dense layers that name their axes
    positions.py   what a token is told of its place: added to it, or rotating queries and keys
    patterns.py    which tokens attend to which, as group ids of the carrier
    attention.py   self-attention and cross-attention
    context.py     a condition's token sets, and who attends to them
    modulation.py  how time and condition enter a block: per-block maps, or one map and tables
    registers.py   learnt tokens of each example, put into the packed row and taken out
    dit.py         the diffusion transformer on packed rows
    clip.py        rows of frames: norms, convolutions in space and in time
    folded.py      attention within pictures and through time, each device its frames or places
    spatial.py     blocks of an image UNet
    relative.py    biases by the distance of two frames
    temporal.py    parts that act in time, and the places where they may stand
    channels.py    parts in time that move or scale channels
    unet3d.py      the space-time UNet: an image UNet and such parts
    encoders.py    a small text encoder
    remat.py       what the backward pass finds saved
    gathered.py    products with kernels that are divided over devices
    cost.py        multiply-adds per example

Precision: parameters are fp32; `dtype` is what products of the trunk are computed in; statistics,
softmax, rotation, time embedding and modulation tables are fp32. Every parameter names its axes
(`axes.py`).
"""
