#!/bin/sh
# Gets Big Buck Bunny out of the source archive of moviepy 2.2.1, where it lies as an example:
#     PY=.venv/bin/python experiments/get_bunny.sh data/bunny/film
# (c) 2008 Blender Foundation / www.bigbuckbunny.org, CC-BY 3.0.
set -eu
out=$1
film=$out/bbb.mp4
sha=475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0
inside=moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip

whole() {
    "$PY" -c 'import hashlib, sys
found = hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest()
sys.exit(found != sys.argv[2])' "$1" "$sha"
}

if [ -f "$film" ] && whole "$film"; then exit 0; fi
mkdir -p "$out"
work=$(mktemp -d "$out/.get.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "moviepy==2.2.1 --hash=sha256:c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1" \
    > "$work/archive.txt"
"$PY" -m pip download --quiet --disable-pip-version-check --no-deps --no-binary moviepy \
    --require-hashes -r "$work/archive.txt" -d "$work" > "$work/pip.log" 2>&1 || {
    echo "get_bunny: pip could not download moviepy 2.2.1: $(grep -m1 ERROR "$work/pip.log")" >&2
    exit 6
}
tar -xzf "$work/moviepy-2.2.1.tar.gz" -C "$work" "$inside"
"$PY" -m zipfile -e "$work/$inside" "$work"
mv "$work/moviepy_10_minutes/resources/bbb.mp4" "$work/bbb.mp4"
whole "$work/bbb.mp4" || {
    echo "get_bunny: the film in the archive is not the one that was expected (SHA-256)." >&2
    exit 6
}
mv "$work/bbb.mp4" "$film"
