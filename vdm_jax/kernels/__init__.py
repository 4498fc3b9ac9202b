"""Attention kernels: one function, `attend`, and a table of backends that agree to rounding.

    attend.py    the contract, the table, which backend is chosen
    dense.py     the reference: the whole matrix of scores
    chunked.py   blocks of scores, only those whose groups can meet, recomputed in the backward pass

Every pattern of attention is a group id per token; see `attend`.
"""

from vdm_jax.kernels.attend import BACKENDS, attend, choose

__all__ = ["BACKENDS", "attend", "choose"]
