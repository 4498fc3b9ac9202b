"""The mathematics of Gaussian diffusion in pure jnp: no modules, no parameters, no layouts.

schedule -> process -> parameterization    what a noise level is and what a network's output means
times  weights  prior                      what training draws and how it weighs errors
steppers  guides  constraints -> sample    how noise becomes video
"""
