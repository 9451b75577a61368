"""Every data source there is. Adding one: its file, its import, its name in `DataConfig`."""

from typing import Annotated

from pydantic import Field

from flagformer.data.associative_recall import AssociativeRecall
from flagformer.data.copy_task import Copy
from flagformer.data.file import TextFile
from flagformer.data.segment_recall import SegmentRecall
from flagformer.data.stdlib import StandardLibrary

# The type of a `data` block: `source` says which. pydantic's error locations carry that name: ("data",
# "file", "path").
DataConfig = Annotated[
    StandardLibrary | TextFile | Copy | AssociativeRecall | SegmentRecall, Field(discriminator="source")
]
