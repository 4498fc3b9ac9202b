"""Video diffusion in JAX. The layers, from the bottom (imports only point down):

types, axes, config            words
batch, cond, kernels/          carriers of video and conditions; attention kernels
diffusion/ nets/ parallel/     mathematics, networks, meshes: blind to each other
signals, codecs, denoiser      where mathematics meets networks
objectives/, stage             what to minimise; what one diffusion model consists of
train/, pipeline               state, step, loop, checkpoints; sampling from a run
features                       a codec over all clips, beforehand
cli/, __main__                 the command line
"""

__version__ = "0.1.0"
