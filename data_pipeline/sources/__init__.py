"""What lies on a disk or a bucket, as entries: one file each, and what is told of it.

folder.py      videos and images in folders, captions beside them
annotated.py   files that annotations name; `annotations/` reads the annotations
tars.py        WebDataset shards
records.py     ArrayRecord files and tensorflow-datasets directories
"""
