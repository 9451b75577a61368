"""Detection of files that are not plain text, by their content, with advice for each format."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from flagformer.lab.data.binary import SAMPLE, is_binary, wide_encoding

HEAD = SAMPLE  # bytes of a file that `binary_format` reads
UNPACK = "decompress it first ({})"
COLUMN = "write the column of text to a .jsonl file and name it in `field`"
IDS = "`source: shards` reads arrays of token ids"
PICKLE = "give a file of text; pickles are never opened"
OTHER = "give a file of text"
RECODE = "convert it (iconv -f {0} -t UTF-8 FILE)"
# The beginning of a file; its end (b"" for any; None for any, if the content is binary, as a text may begin
# with the same letters); the name of the format; advice.
FORMATS: tuple[tuple[bytes, bytes | None, str, str], ...] = (
    (rb"\x1f\x8b", b"", "gzip", UNPACK.format("gunzip --keep FILE")),
    (rb"\x1f[\x9d\xa0]", b"", "compress", UNPACK.format("gunzip --keep FILE")),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", b"", "Zstandard", UNPACK.format("unzstd FILE")),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", b"", "bzip2", UNPACK.format("bunzip2 --keep FILE")),
    (rb"\xfd7zXZ\x00", b"", "xz", UNPACK.format("unxz --keep FILE")),
    (rb"\x5d\x00\x00..(\xff{8}|.{5}\x00{3})", b"", "lzma", UNPACK.format("unlzma --keep FILE")),
    (rb"\x04\x22\x4d\x18|\x02\x21\x4c\x18", b"", "LZ4", UNPACK.format("unlz4 FILE")),
    (rb"\xff\x06\x00\x00sNaPpY", b"", "Snappy", UNPACK.format("snzip -d FILE")),
    (rb"7z\xbc\xaf\x27\x1c", b"", "7-Zip", UNPACK.format("7z x FILE")),
    (rb"Rar!\x1a\x07", b"", "RAR", UNPACK.format("unrar x FILE")),
    (rb".{257}ustar[\x00 ]", b"", "tar", "unpack it (tar -xf FILE) and give the folder"),
    (rb"PK\x03\x04.*xl/workbook\.xml", b"", "Excel", "save the sheet as .csv and name its `field`"),
    (rb"PK\x03\x04.*(word/document|ppt/presentation)\.xml", b"", "Office", "save it as plain text"),
    (rb"PK\x03\x04.{26}mimetypeapplication/", b"", "OpenDocument or EPUB", "save it as plain text"),
    (rb"PK\x03\x04.{26}[^\x00]{0,99}/data\.pkl", b"", "PyTorch", PICKLE),
    (rb"PK\x03\x04.{26}[^\x00]{0,99}\.npy", b"", "NumPy (.npz)", "give the text that it was made of"),
    (rb"PK(\x03\x04|\x05\x06)", b"", "zip", "unpack it first (unzip FILE)"),
    (rb"PAR[1E]", rb"PAR[1E]", "Parquet", "`source: parquet` reads a column of text"),
    (rb"ARROW1\x00\x00|\xff\xff\xff\xff..\x00\x00", b"", "Arrow", "`source: dataset` reads its folder"),
    (rb"FEA1", rb"FEA1", "Feather", COLUMN),
    (rb"ORC", rb"ORC.", "ORC", COLUMN),
    (rb"Obj\x01", b"", "Avro", COLUMN),
    (rb"(.{512})?\x89HDF\r\n\x1a\n", b"", "HDF5", COLUMN),
    (rb"CDF[\x01\x02\x05]", b"", "NetCDF", COLUMN),
    (rb"MATLAB 5\.0 MAT-file", None, "MATLAB", COLUMN),
    (rb"SQLite format 3\x00", b"", "SQLite", COLUMN),
    (rb".{8}DUCK", None, "DuckDB", COLUMN),
    (rb".{16}\xde\xc0\xef\xbe", b"", "LMDB", COLUMN),
    (rb"\x93NUMPY", b"", "NumPy", IDS),
    (rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", b"", "PyTorch", PICKLE),
    (rb"\x80[\x02-\x05]", b"", "pickle", PICKLE),
    (rb"GGUF.\x00\x00\x00", b"", "GGUF", "give a file of text; this one holds a model"),
    (rb"\n.\n[\x03-\x20]<(unk|pad|s)>\x15", b"", "SentencePiece model", "give the text to be encoded"),
    (rb"MMIDIDX\x00", b"", "Megatron index", IDS),
    (rb"%PDF-\d\.\d", rb"%%EOF\s*", "PDF", "extract its text first (pdftotext FILE)"),
    (rb"%PDF-", None, "PDF", "extract its text first (pdftotext FILE)"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", "Office", "save it as plain text"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP", b"", "image", OTHER),
    (rb"GIF8[79]a|II\*\x00|MM\x00\*", None, "image", OTHER),
    (rb"RIFF....(WAVE|AVI )|.{4}ftyp|OggS|fLaC|ID3|\x1a\x45\xdf\xa3", None, "sound or film", OTHER),
    (rb"\x7fELF|MZ|\xca\xfe\xba\xbe|\x00asm|[\xce\xcf]\xfa\xed\xfe", None, "program", OTHER),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", b"", "UTF-32", RECODE.format("UTF-32")),
    (rb"\xff\xfe|\xfe\xff", b"", "UTF-16", RECODE.format("UTF-16")),
)


def refuse_binary(path: Path, content: Tensor) -> None:
    """Raise ValueError, with the file and its format, if uint8 `content` is not text.

    Invalid UTF-8 is allowed: byte models read any encoding with one byte per ASCII character.
    """
    head, tail = content[:SAMPLE].numpy().tobytes(), content[-SAMPLE:].numpy().tobytes()
    binary = is_binary(content)
    name, advice = binary_format(head, len(content), binary, tail)
    if name:
        raise ValueError(f"`path` must be a file of text, but {path} is a {name} file{advice}")
    if b'"added_tokens"' in head and b'"model"' in head + tail and head.lstrip()[:1] == b"{":
        raise ValueError(
            f"`path` must be a file of text, but {path} is a tokenizer.json; name it in `tokenizer`"
        )
    if not binary:
        return
    encoding = wide_encoding(content)
    if encoding is None:
        found = "is binary; if it holds token ids, use `source: shards`"
    else:
        found = f"is a {encoding} file; {RECODE.format(encoding)}"
    raise ValueError(f"`path` must be a file of text, but {path} {found}")


def binary_format(head: bytes, size: int, binary: bool, tail: bytes = b"") -> tuple[str, str]:
    """The name of a format and advice, from the first and last bytes of a file of `size` bytes; both are
    empty for an unknown format. `binary`: whether the bytes are not text, which decides if `tail` is
    omitted."""
    for begins, ends, name, advice in FORMATS:
        if re.match(begins, head + tail, re.DOTALL) and _agrees(ends, tail, binary):
            return name, f"; {advice}"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < size:
        return "safetensors", ": a model's weights"
    return "", ""


def _agrees(ends: bytes | None, tail: bytes, binary: bool) -> bool:
    if ends is None or (ends and not tail):
        return binary
    return re.search(rb"(?s:" + ends + rb")\Z", tail[-64:]) is not None
