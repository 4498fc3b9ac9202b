"""Rows to devices: a step waits for its slowest device, so each gets about the same work.

Largest first onto the least loaded (Graham 1969), the same number of rows each; then the most
loaded device swaps one row with another device for as long as that makes both less loaded than it
was. A pure function of (costs, devices); a microbatch keeps its rows, so what a step learns from
does not change.
"""

from __future__ import annotations

import numpy as np


def balance(costs: np.ndarray, devices: int) -> np.ndarray:
    """(devices, rows per device) indices of rows.

    Args:
      costs: (rows,) work of each row, such as its sum of squared segment lengths.

    Raises:
      ValueError: rows do not divide by devices.
    """
    if len(costs) % devices:
        raise ValueError(f"{len(costs)} rows do not divide among {devices} devices")
    each = len(costs) // devices
    load, given = np.zeros(devices), np.zeros(devices, np.int64)
    out = np.empty((devices, each), np.int64)
    for row in np.argsort(-costs, kind="stable"):
        device = int(np.argmin(np.where(given < each, load, np.inf)))
        out[device, given[device]] = row
        load[device] += costs[row]
        given[device] += 1
    for _ in range(len(costs)):
        if not _swap(costs, out):
            break
    return out


def _swap(costs: np.ndarray, out: np.ndarray) -> bool:
    """Swap the pair of rows that takes most off the most loaded device; whether there is one."""
    work = costs[out]
    load = work.sum(axis=1)
    most = int(load.argmax())
    less = work[most][:, None, None] - work  # (its rows, devices, their rows)
    both = np.maximum(load[most] - less, load[:, None] + less)
    mine, device, theirs = np.unravel_index(both.argmin(), both.shape)
    if both[mine, device, theirs] >= load[most]:
        return False
    out[most, mine], out[device, theirs] = out[device, theirs], out[most, mine]
    return True


def straggler(costs: np.ndarray, assigned: np.ndarray) -> float:
    """The most loaded device's work over the mean; 1 is perfect."""
    load = costs[assigned].sum(axis=1)
    return float(load.max() / load.mean()) if load.any() else 1.0
