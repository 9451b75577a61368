"""Detection of binary data by bytes that text does not contain."""

from __future__ import annotations

import codecs
import unicodedata

from torch import Tensor

SAMPLE = 1 << 16  # bytes of each of several samples
SAMPLES = 5
MAX_INVALID = 3  # zeros, control characters or invalid UTF-8 bytes that a text of any length may contain
# Control characters of text: backspace, white space, escape, separators of records.
TEXTUAL = b"\b\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f"
CONTROL = bytes(byte for byte in range(1, 32) if byte not in TEXTUAL)
CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of a character of UTF-8 after its first
SPACES = " \n\u3000\u3001\u3002"  # and the comma and full stop of scripts without spaces
WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")


def is_binary(content: Tensor) -> bool:
    """Whether uint8 [N] is not text in an encoding with one byte per ASCII character.

    Up to a fifth of any text may be control characters; UTF-8 may also contain zeros, as separators of
    records. Bytes that are not UTF-8 may contain one zero in 1,024, and none if one byte in 50 is a control
    character: compressed data has one zero in 256 and one control character in 12, token ids and other
    numbers have more.
    """
    samples = samples_of(content)
    size = sum(map(len, samples))
    zeros = sum(sample.count(0) for sample in samples)
    odd = zeros + size - sum(len(sample.translate(None, CONTROL)) for sample in samples)
    if odd > max(MAX_INVALID, size // 5):
        return True
    if sum(map(_count_invalid, samples)) <= _max_invalid(size):
        return False
    return zeros > _max_invalid(size) or (zeros > 0 and odd > max(MAX_INVALID, size // 50))


def wide_encoding(content: Tensor) -> str | None:
    """The UTF-16 or UTF-32 encoding in which binary content is text; None if it is not text in any of
    them."""
    return next((name for name in WIDE if all(_reads(sample, name) for sample in samples_of(content))), None)


def samples_of(content: Tensor) -> list[bytes]:
    """Evenly spaced samples of the content, each at a multiple of four bytes."""
    last = max(0, len(content) - SAMPLE)
    starts = sorted({last * number // (SAMPLES - 1) // 4 * 4 for number in range(SAMPLES)})
    return [content[start : start + SAMPLE].numpy().tobytes() for start in starts]


def _max_invalid(size: int) -> int:
    return max(MAX_INVALID, size >> 10)


def _count_invalid(sample: bytes) -> int:
    """The number of invalid UTF-8 bytes, without characters that are cut at the ends of a sample."""
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    shown = reader.decode(sample.lstrip(CONTINUATION) if len(sample) == SAMPLE else sample)
    return shown.count("\ufffd") - sample.count("\ufffd".encode())


def _reads(sample: bytes, encoding: str) -> bool:
    """Whether a sample is text: at most 1 % unassigned characters, at least 0.5 % spaces or full stops."""
    shown = sample[: len(sample) // 4 * 4].decode(encoding, errors="replace")
    strange = sum(unicodedata.category(letter) in ("Cn", "Co", "Cs", "Cc") for letter in shown)
    strange += shown.count("\ufffd") - sum(map(shown.count, "\t\r\n\f"))
    return strange * 100 <= len(shown) <= sum(map(shown.count, SPACES)) * 200
