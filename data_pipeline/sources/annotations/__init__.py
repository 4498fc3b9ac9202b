"""How data sets are annotated: for each, a function from the path of its annotations to `Told`."""

from data_pipeline.sources.annotations.table import table

ANNOTATIONS = {"table": table}
