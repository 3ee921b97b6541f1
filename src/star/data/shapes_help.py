"""What `python -m star.data.shapes --help` says."""

from __future__ import annotations

from star.data.shapes_captions import TAGS, WEIGHTS

HELP = f"""Draw coloured shapes with captions and write them as shards: 00000.tar ... of key.png, key.txt, key.json.

  python -m star.data.shapes out=outputs/data/shapes/train num_images=16384
  python -m star.data.shapes out=outputs/data/shapes/validation num_images=512 seed=1 split=heldout

The same settings always give the same files. Finished shards are kept, so an interrupted run goes on where it stopped.

  out=                 the folder
  num_images=          how many pictures
  size=                their side in pixels, default 64
  split=               train (default) and validation hold nothing that is held out, heldout nothing else
  seed=                another seed, other pictures; the splits differ even with equal seeds; default 0
  samples_per_shard=   at most 10000, default 1024
  captions_per_image=  wordings of each picture in its json, default 4; the first is its caption
  exact=               share of the wordings that are those of the evaluation suites, default 0.5
  weights.TAG=         how often each kind of caption is drawn: {", ".join(f"{tag} {WEIGHTS[tag]:g}" for tag in TAGS)}
  workers=             processes that draw; they change nothing in the files
  overwrite=           true: replace what other settings wrote into the folder
  progress=            false: no progress bar
"""
