"""Kernels: `attend`, with a table of backends that agree to rounding, and a linear product.

    attend.py    the contract, the table, which backend is chosen
    kernel.py    what a kernel is: a forward and a backward pass that can be merged over keys
    spread.py    a kernel under a mesh: rows, heads and tokens over devices
    ring.py      tokens over devices: keys go round
    ulysses.py   tokens over devices: heads are divided instead
    dense.py     the reference: the whole matrix of scores
    blocks.py    which blocks of queries and keys can meet
    chunked.py   blocks of scores, only those whose groups can meet, recomputed in the backward pass
    splash.py    the same on a TPU, by JAX's splash kernel
    fused.py     the same on a GPU, in Triton
    trial.py     whether that is right on the GPU at hand
    platform.py  what a program is traced for
    linear.py    the product of a linear layer, its weight gradient as a CPU is fast at it

Every pattern of attention is a group id per token; see `attend`.
"""

from vdm_jax.kernels.attend import BACKENDS, attend, choose, everywhere

__all__ = ["BACKENDS", "attend", "choose", "everywhere"]
