"""Pictures one after another, as a film: PNG or JPEG as they are, in an AVI, nothing encoded anew.

What tensorflow-datasets calls a Video is stored so; its frames have no times of their own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import PIL.Image

from data_pipeline.errors import BadClip

CODECS = {"PNG": "png", "JPEG": "mjpeg"}


def film(pictures: Sequence[bytes], fps: Fraction) -> bytes:
    """An AVI of `fps` frames a second; the same bytes for the same pictures.

    Raises:
      BadClip: the first picture is neither PNG nor JPEG.
    """
    try:
        # Only its header is read.
        with PIL.Image.open(io.BytesIO(pictures[0]), formats=tuple(CODECS)) as first:
            codec, (width, height) = CODECS[first.format or ""], first.size
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, KeyError) as error:
        raise BadClip("format", "its frames are neither PNG nor JPEG") from error
    out = io.BytesIO()
    with av.open(out, "w", format="avi", options={"fflags": "bitexact"}) as container:
        stream = container.add_mux_stream(codec, rate=fps, width=width, height=height)
        stream.time_base = 1 / fps  # an AVI's rate is that of its ticks
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, 1 / fps
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return out.getvalue()
