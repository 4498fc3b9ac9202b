"""From folders of video to packed rows of patches: numpy and grain, no jax.

    places, remote, storage                      where bytes are: on disk, in a shard, on a bucket
    sources, captions -> probe, shots
        -> index, parts -> manifest              what there is, measured once
    curation                                     what it is worth: manifest -> manifest
    mixture, filters -> collection -> order      which clips, and when each has its turn
    sizes, clips, dropping                       laws: how large, how long, how many tokens
        -> layouts, bins -> plan                 which examples share a row: metadata alone
    decode -> rows -> loaders                    pixels, decoded where the plan put them
    files, workers, children, nursery            who opens a stranger's file, and who decodes it
    report, card -> tables, picture              what a plan would do, and of what data
    generated, encode, shapes                    the demo's own data

The plan is a pure function of (manifests, seed), and the place in it is one integer.
"""

from absl import flags as _flags

# grain reads absl flags even in programs that never parse any, and fails if nobody has.
if not _flags.FLAGS.is_parsed():
    _flags.FLAGS.mark_as_parsed()
