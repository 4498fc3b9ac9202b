"""A convolution of pictures, with gradients in the forms a CPU is fast at.

    y = x * K,   dx = dy * K reversed,   dK[i, j] = sum over places of x shifted by (i, j), times dy

XLA for the CPU has a fast convolution, and outside of loops and branches it brings gradients into
its form. Inside of them, as in the scan over microbatches, it computes them element by element: of
16 x 16 pictures of 32 channels dx took 301 ms instead of 12, of 8 x 8 ones dK a hundred times as
long. Here dx is that convolution as it stands, of a kernel turned around, and dK a product for
every place of the kernel. Pictures smaller than the kernel, which that convolution is slow at, are
one product of all that the kernel sees: of 2 x 2 ones of 128 channels 2 ms instead of 54. For other
platforms the compiler chooses.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Side = tuple[int, int]  # zeros before and after
Around = tuple[Side, Side]  # of rows, of columns
# As many channels or fewer are multiplied side by side: on one core 128 channels by 3 of 16 x 16
# pictures took 3.4 ms so, 16 ms one place of the kernel after the other; 64 by 64 took 39 and 16.
FEW = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "k k c o"],
    stride: int,
    around: Around | None = None,
) -> Float[Array, "n y x o"]:
    """x * K in the dtype of both, with so many zeros (above, below), (left, right) of each picture;
    None is half of the kernel's size on every side."""
    return _convolve(x, kernel, stride, around)


def convolve_enlarged(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"]
) -> Float[Array, "n 2h 2w o"]:
    """x of twice the height and width, each pixel four times, * K.

    Of three neighbours of the larger picture two are the same pixel of x, so that the kernel has
    2 x 2 places there, others for each of the four: 4 products a pixel that is made instead of 9,
    and the larger picture is never written.
    """
    even = jnp.array([[1, 0, 0], [0, 1, 1]], kernel.dtype)  # sees the pixel before, and its own
    odd = jnp.array([[1, 1, 0], [0, 0, 1]], kernel.dtype)  # sees its own, and the pixel after
    ways = ((even, (1, 0)), (odd, (0, 1)))

    def made(rows: tuple[Array, Side], columns: tuple[Array, Side]) -> Array:
        four = jnp.einsum("ik, jl, klco -> ijco", rows[0], columns[0], kernel)
        return convolve(x, four, 1, (rows[1], columns[1]))

    pairs = [jnp.stack([made(rows, columns) for columns in ways], axis=3) for rows in ways]
    n, h, w, _ = x.shape
    return jnp.stack(pairs, axis=2).reshape(n, 2 * h, 2 * w, -1)


def _convolve(x: Array, kernel: Array, stride: int, around: Around | None = None) -> Array:
    return _window(x, kernel, stride, around or _half(kernel.shape[0]))


def _half(size: int) -> Around:
    # Of even sizes 'SAME' pads one side more than networks trained elsewhere do.
    return (size // 2,) * 2, (size // 2,) * 2


def _window(x: Array, kernel: Array, stride: int, around: Around) -> Array:
    names = ("NHWC", "HWIO", "NHWC")

    def by_compiler(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), around, dimension_numbers=names
        )

    if min(x.shape[1:3]) >= kernel.shape[0]:
        return by_compiler(x, kernel)
    seen = functools.partial(_seen, stride=stride, around=around)
    return jax.lax.platform_dependent(x, kernel, cpu=seen, default=by_compiler)


def _seen(x: Array, kernel: Array, stride: int, around: Around) -> Array:
    """The convolution as one product of what the kernel sees at every place."""
    parts = list(_shifted(x, kernel.shape[0], around, stride))
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _save(x: Array, kernel: Array, stride: int, around: Around | None):
    # Not `convolve`, inside of which a remat policy would not see what it may keep.
    return _convolve(x, kernel, stride, around), (x, kernel)


def _differentiate(stride: int, around: Around | None, saved: tuple[Array, Array], d_y: Array):
    x, kernel = saved
    zeros = around or _half(kernel.shape[0])

    def by_compiler(x, d_y):
        (d_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, zeros), x)(d_y)
        (d_kernel,) = jax.linear_transpose(lambda k: _convolve(x, k, stride, zeros), kernel)(d_y)
        return d_x, d_kernel

    def by_hand(x, d_y):
        d_kernel = _kernel_slope(x, d_y, kernel.shape[0], stride, zeros)
        return _input_slope(d_y, kernel, stride, x.shape[1:3], zeros), d_kernel

    return jax.lax.platform_dependent(x, d_y, cpu=by_hand, default=by_compiler)


convolve.defvjp(_save, _differentiate)


def _input_slope(
    d_y: Array, kernel: Array, stride: int, places: Sequence[int], around: Around
) -> Array:
    """dx: a place of x is seen from where the kernel, turned around, sees it."""
    # Zeros between what was strided over, as an array: a convolution that puts them there is slow.
    if stride > 1:
        d_y = jax.lax.pad(
            d_y, jnp.zeros((), d_y.dtype), ((0, 0, 0), *((0, 0, stride - 1),) * 2, (0, 0, 0))
        )
    turned = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
    return _window(d_y, turned, 1, _seen_from(d_y, places, kernel.shape[0], around))


def _seen_from(d_y: Array, places: Sequence[int], size: int, around: Around) -> Around:
    """Zeros around dy for which a kernel, turned around, sees it from every place of x."""
    rows, columns = (
        (size - 1 - before, count + before - long)
        for count, long, (before, _) in zip(places, d_y.shape[1:3], around, strict=True)
    )
    return rows, columns


def _kernel_slope(
    x: Array, d_y: Array, size: int, stride: int, around: Around
) -> Float[Array, "k k c o"]:
    """dK. Shifting copies, so the one with fewer channels is shifted."""
    if stride == 1 and d_y.shape[-1] < x.shape[-1]:
        # The last place of the kernel is the first that dy is seen from.
        zeros = _seen_from(d_y, x.shape[1:3], size, around)
        found = _products(x, reversed(list(_shifted(d_y, size, zeros, 1))))
    else:
        found = _products(d_y, _shifted(x, size, around, stride))
        found = jnp.swapaxes(found, 1, 2)
    return found.reshape(size, size, *found.shape[1:])


def _shifted(x: Array, size: int, around: Around, stride: int) -> Iterable[Array]:
    """What each place of a kernel sees, with so many zeros around each picture."""
    padded = jnp.pad(x, ((0, 0), *around, (0, 0)))
    high, wide = (stride * ((count - size) // stride) + 1 for count in padded.shape[1:3])
    for i in range(size):
        for j in range(size):
            yield padded[:, i : i + high : stride, j : j + wide : stride]


def _products(x: Array, others: Iterable[Array]) -> Float[Array, "k c d"]:
    """Sums over pictures and places of x (n h w c) times each of the others (n h w d)."""
    across = x.reshape(-1, x.shape[-1]).T
    flat = [other.reshape(-1, other.shape[-1]) for other in others]
    if flat[0].shape[-1] > FEW:
        return jnp.stack([across @ other for other in flat])
    found = across @ jnp.concatenate(flat, axis=-1)
    return jnp.swapaxes(found.reshape(len(across), len(flat), -1), 0, 1)
