"""From folders of video to packed rows of patches: numpy and grain, no jax.

    sources, captions -> probe, shots
        -> index -> manifest                     what there is, measured once
    curation                                     what it is worth: manifest -> manifest
    order -> sizes, clips -> bins -> plan        which examples share a row: metadata alone
    decode -> rows -> loaders                    pixels, decoded where the plan put them
    report                                       what a plan would do
    generated, encode                            the demo's own data

The plan is a pure function of (manifests, seed), and the place in it is one integer.
"""

from absl import flags as _flags

# grain reads absl flags even in programs that never parse any, and fails if nobody has.
if not _flags.FLAGS.is_parsed():
    _flags.FLAGS.mark_as_parsed()
