"""A small data set of real files, made once."""

import pytest

from data_pipeline.generated import generate
from data_pipeline.index import index


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """The manifest of 24 generated clips; not to be changed."""
    folder = tmp_path_factory.mktemp("shapes")
    generate(str(folder / "clips"), 24, 0)
    index(str(folder / "clips"), str(folder / "manifest"))
    return folder / "manifest"
