"""Every data source there is. Adding one: its file, its import, its name in `DataConfig`."""

from typing import Annotated

from pydantic import Field

from flagformer.data.associative_recall import AssociativeRecall
from flagformer.data.compression import Compression
from flagformer.data.copy_task import Copy
from flagformer.data.digits import Digits
from flagformer.data.download import Enwik8, Text8
from flagformer.data.file import TextFile
from flagformer.data.fuzzy_recall import FuzzyRecall
from flagformer.data.induction import Induction
from flagformer.data.list_ops import ListOps
from flagformer.data.long_retrieval import LongRetrieval
from flagformer.data.parity import Parity
from flagformer.data.reverse import Reverse
from flagformer.data.segment_recall import SegmentRecall
from flagformer.data.selective_copy import SelectiveCopy
from flagformer.data.stdlib import StandardLibrary
from flagformer.data.tokens import TokenFile

# The type of a `data` block: `source` says which. pydantic's error locations carry that name: ("data",
# "file", "path").
DataConfig = Annotated[
    StandardLibrary | TextFile | TokenFile | Enwik8 | Text8 | Copy | SelectiveCopy | Reverse |
    AssociativeRecall | Induction | FuzzyRecall | Compression | Parity | ListOps | SegmentRecall |
    LongRetrieval | Digits, Field(discriminator="source"),
]  # fmt: skip
