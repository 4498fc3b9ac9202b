"""A convolution of pictures, with the gradient of its kernel in the form a CPU is fast at.

    y = x * K,   dx = dy * K reversed,   dK[i, j] = sum over places of x shifted by (i, j), times dy

dK is a convolution too, of x by dy as a kernel as large as a picture. Inside a loop XLA for the CPU
computes it element by element: one of 8 x 8 pictures took a hundred times as long in the scan over
microbatches as before it. Here it is a product of the columns of x, its shifted copies side by
side, by dy, which is as fast wherever it stands. For other platforms the compiler chooses.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c o"], stride: int
) -> Float[Array, "n y x o"]:
    """x * K in the dtype of both, with half of the kernel's size of zeros around each picture."""
    return _convolve(x, kernel, stride)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    # Of even sizes 'SAME' pads one side more than networks trained elsewhere do.
    around = (kernel.shape[0] // 2,) * 2
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=names
    )


def _save(x: Array, kernel: Array, stride: int):
    # Not `convolve`, inside of which a remat policy would not see what it may keep.
    return _convolve(x, kernel, stride), (x, kernel)


def _differentiate(stride: int, saved: tuple[Array, Array], d_y: Array):
    x, kernel = saved
    (d_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride), x)(d_y)

    def as_convolution(x, d_y):
        (found,) = jax.linear_transpose(lambda kernel: _convolve(x, kernel, stride), kernel)(d_y)
        return found

    def as_product(x, d_y):
        columns = _columns(x, kernel.shape[0], stride, d_y.shape[1:3])
        return jnp.tensordot(columns, d_y, ((0, 1, 2), (0, 1, 2))).reshape(kernel.shape)

    d_kernel = jax.lax.platform_dependent(x, d_y, cpu=as_product, default=as_convolution)
    return d_x, d_kernel


convolve.defvjp(_save, _differentiate)


def _columns(x: Array, size: int, stride: int, places: tuple[int, int]) -> Array:
    """(n y x (size size c)): what the kernel sees at every place."""
    around = ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))
    padded = jnp.pad(x, around)
    high, wide = (stride * (count - 1) + 1 for count in places)
    return jnp.concatenate(
        [
            padded[:, i : i + high : stride, j : j + wide : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )
