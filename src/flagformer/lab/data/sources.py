"""All data sources but mixtures. To add one, write its file, its import and its name in `SingleSource`."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from flagformer.lab.data import Source
from flagformer.lab.data.addition import Addition
from flagformer.lab.data.associative_recall import AssociativeRecall
from flagformer.lab.data.cfg_depth import CfgDepth
from flagformer.lab.data.compression import Compression
from flagformer.lab.data.copy_task import Copy
from flagformer.lab.data.digits import Digits
from flagformer.lab.data.download import Enwik8, Text8
from flagformer.lab.data.file import TextFile
from flagformer.lab.data.fuzzy_recall import FuzzyRecall
from flagformer.lab.data.grammar import Grammar
from flagformer.lab.data.image_folder import ImageFolder
from flagformer.lab.data.induction import Induction
from flagformer.lab.data.infilling import Infilling
from flagformer.lab.data.list_ops import ListOps
from flagformer.lab.data.long_retrieval import LongRetrieval
from flagformer.lab.data.multiplication import Multiplication
from flagformer.lab.data.parallel import Parallel
from flagformer.lab.data.parity import Parity
from flagformer.lab.data.record_source import Records
from flagformer.lab.data.reverse import Reverse
from flagformer.lab.data.segment_recall import SegmentRecall
from flagformer.lab.data.selective_copy import SelectiveCopy
from flagformer.lab.data.series import Series
from flagformer.lab.data.shards import Shards
from flagformer.lab.data.sines import Sines
from flagformer.lab.data.sort import Sort
from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.data.tokens import TokenFile
from flagformer.lab.imports import KNOWN, OWN, ByPath, tag_of

SingleSource = (
    StandardLibrary | TextFile | TokenFile | Records | Shards | Enwik8 | Text8 | Copy | SelectiveCopy |
    Reverse | AssociativeRecall | Induction | FuzzyRecall | Compression | Parity | ListOps | SegmentRecall |
    LongRetrieval | Sort | Addition | Multiplication | Grammar | CfgDepth | Infilling | Sines | Digits |
    Parallel | ImageFolder | Series
)  # fmt: skip
OwnSource = Annotated[Source, ByPath(Source, "source")]
# A source that is no mixture.
PartSource = Annotated[
    Annotated[SingleSource, Field(discriminator="source"), Tag(KNOWN)] | Annotated[OwnSource, Tag(OWN)],
    Discriminator(tag_of("source")),
]
