"""Kernels: `attend`, with a table of backends that agree to rounding, and a linear product.

    attend.py    the contract, the table, which backend is chosen
    kernel.py    what a kernel is: a forward and a backward pass that can be merged over keys
    spread.py    a kernel under a mesh: rows and heads over devices
    dense.py     the reference: the whole matrix of scores
    chunked.py   blocks of scores, only those whose groups can meet, recomputed in the backward pass
    linear.py    the product of a linear layer, its weight gradient as a CPU is fast at it

Every pattern of attention is a group id per token; see `attend`.
"""

from vdm_jax.kernels.attend import BACKENDS, attend, choose

__all__ = ["BACKENDS", "attend", "choose"]
