"""How data sets are annotated: for each, a function from the path of its annotations to lines of
what they tell.

table.py     tables of any origin, for sets without a form of their own
clips.py     sets passed on as clips            films.py, mined.py   sets that name parts of films
reading.py   what the readers share             gather.py            lines of one file together
"""

from data_pipeline.sources.annotations import clips, films, mined
from data_pipeline.sources.annotations.table import table

ANNOTATIONS = {
    "table": table,
    "webvid": clips.webvid,
    "openvid": clips.openvid,
    "msrvtt": clips.msrvtt,
    "ucf101": clips.ucf101,
    "lsmdc": clips.lsmdc,
    "didemo": films.didemo,
    "youcook2": films.youcook2,
    "activitynet": films.activitynet,
    "how2": films.how2,
    "howto100m": films.howto100m,
    "hdvila": mined.hdvila,
    "internvid": mined.internvid,
    "panda70m": mined.panda70m,
}
