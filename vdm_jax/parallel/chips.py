"""What one chip can do at best, with the public page that says so.

`links` are the torus axes a chip is connected along, two links each; `link` is what one link moves
one way. `devices` is how many JAX devices a chip is: where its cores are not fused into one, a
device has that share of the chip. `usable` is the memory of a device that the compiler gives to a
program, found by asking it (libtpu 0.0.42) for more than there is.
"""

from __future__ import annotations

import dataclasses

from vdm_jax.config import UserError, suggestion

GIB = 2**30
PAGE = "cloud.google.com/tpu/docs/"
BOOK = "jax-ml.github.io/scaling-book/tpus"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Peaks of a chip.

    Attributes:
      kinds: names that JAX gives its devices.
      flops: bf16 FLOP/s; hbm: bytes; hbm_bandwidth: bytes/s; link: bytes/s, one link, one way.
      usable: bytes of one device.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: int
    hbm_bandwidth: float
    links: int
    link: float
    usable: int
    devices: int = 1
    source: str

    @property
    def device_flops(self) -> float:
        return self.flops / self.devices

    @property
    def device_bandwidth(self) -> float:
        return self.hbm_bandwidth / self.devices


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", kinds=("TPU v4",), flops=275e12, hbm=32 * GIB, hbm_bandwidth=1228e9,
            links=3, link=45e9, usable=int(15.25 * GIB), devices=2, source=f"{PAGE}v4; {BOOK}",
        ),
        Chip(
            name="v5e", kinds=("TPU v5 lite", "TPU v5e"), flops=197e12, hbm=16 * GIB,
            hbm_bandwidth=819e9, links=2, link=45e9, usable=int(15.75 * GIB),
            source=f"{PAGE}v5e; {BOOK}",
        ),
        Chip(
            name="v5p", kinds=("TPU v5", "TPU v5p"), flops=459e12, hbm=95 * GIB,
            hbm_bandwidth=2765e9, links=3, link=90e9, usable=int(95.74 * GIB),
            source=f"{PAGE}v5p; {BOOK}",
        ),
        Chip(
            name="v6e", kinds=("TPU v6 lite", "TPU v6e"), flops=918e12, hbm=32 * GIB,
            hbm_bandwidth=1638e9, links=2, link=90e9, usable=int(31.25 * GIB),
            source=f"{PAGE}v6e; {BOOK}",
        ),
        Chip(
            name="v7x", kinds=("TPU7x", "TPU v7x"), flops=2307e12, hbm=192 * GIB,
            hbm_bandwidth=7380e9, links=3, link=90e9, usable=int(94.75 * GIB), devices=2,
            source=f"{PAGE}tpu7x; {BOOK}",
        ),
    )
}  # fmt: skip


def chip_called(name: str) -> Chip:
    """Raises: UserError, no such chip."""
    if name not in CHIPS:
        raise UserError(f"there is no chip '{name}'.{suggestion(name, CHIPS)}")
    return CHIPS[name]


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose devices JAX calls so; None for one that the table lacks."""
    return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


def peak_flops(device_kind: str) -> float | None:
    """bf16 FLOP/s of one JAX device of this kind, if it is known."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.device_flops
