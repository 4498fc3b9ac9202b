"""The closed vocabulary of logical axis names; `parallel/rules.py` maps each to mesh axes."""

from __future__ import annotations

# Activations
ROW = "row"  # rows of a packed batch, or videos of a dense one
TOKEN = "token"  # video tokens of a row, or its frames
PLACE = "place"  # places of a picture, each in all frames of a row: instead of frames
TEXT = "text"  # text tokens of a row
SEGMENT = "segment"  # examples of a row

# Parameters
EMBED = "embed"  # the residual stream
MLP = "mlp"  # hidden units of a feed-forward layer
HEADS = "heads"  # attention heads
HEAD_DIM = "head_dim"  # features of one head
VOCAB = "vocab"  # entries of an embedding table
PATCH = "patch"  # features of a patch, in and out
CONDITION = "condition"  # features of a condition before it meets the trunk
MODULATION = "modulation"  # the shift, scale and gate vectors of adaptive norms
LAYER = "layer"  # layers stacked by a scan

NAMES = frozenset(
    {
        ROW,
        TOKEN,
        PLACE,
        TEXT,
        SEGMENT,
        EMBED,
        MLP,
        HEADS,
        HEAD_DIM,
        VOCAB,
        PATCH,
        CONDITION,
        MODULATION,
        LAYER,
    }
)
