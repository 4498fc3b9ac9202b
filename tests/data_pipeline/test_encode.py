"""The same frames make the same file, however often and beside whatever else."""

from concurrent.futures import ThreadPoolExecutor

from data_pipeline.encode import write_mp4
from data_pipeline.generated import render, scene


def test_the_same_frames_make_the_same_bytes(tmp_path):
    films = [one for one in (scene(0, index) for index in range(80)) if one.motion]
    clips = [(render(one, 0), one.fps) for one in films]

    def encode(turn):
        path = tmp_path / f"{turn}.mp4"
        write_mp4(path, *clips[turn % len(clips)])
        return turn % len(clips), path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(encode, range(8 * len(clips))))
    assert len(set(made)) == len(clips) > 30
