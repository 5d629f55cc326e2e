"""What ``fairseq-preprocess`` wrote, looked at before fairseq maps it into memory and trusts what it finds there.

A set has, for each language, an index ``PREFIX.idx`` and the numbers of its pieces ``PREFIX.bin``. The index is a
header, the length of every sentence (int32), and where each begins in the other file (int64): ``MMapIndexedDataset``
in fairseq's ``data/indexed_dataset.py``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from taskmoe_plugin.errors import TaskMoEError

_MAGIC = b"MMIDIDX\x00\x00"
_OTHERS = (b"TNTIDX\x00\x00", b"HUFFIDX\x00")  # fairseq's other formats, which it reads with checks of its own
_HEADER = struct.Struct(f"<{len(_MAGIC)}sQBQ")
# The types of pieces, by fairseq's code.
_TYPES = {
    code: np.dtype(name)
    for code, name in enumerate(
        ("uint8", "int8", "int16", "int32", "int64", "float32", "float64", "uint16", "uint32", "uint64"), 1
    )
}
_BLOCK = 1 << 22  # pieces, or sentences, that are looked at together
AGAIN = "run fairseq-preprocess again, or copy it again"


def check_set(prefix: str) -> None:
    """Raise an error that names a file if one language's half of a binarised set is damaged, incomplete or empty.

    Only the index is read. Sets in fairseq's other formats are not looked at.

    Args:
        prefix: the path of its files without ``.idx`` and ``.bin``.

    Raises:
        TaskMoEError: what is wrong with which file.
    """
    index, data = Path(prefix + ".idx"), Path(prefix + ".bin")
    if not index.exists() and not data.exists():
        return
    header, size = _start(index, _HEADER.size)
    _, data_size = _start(data, 1)
    if header.startswith(_OTHERS):
        return
    if len(header) < _HEADER.size and _MAGIC.startswith(header[: len(_MAGIC)]):
        raise TaskMoEError(f"{index}: truncated; {AGAIN}")
    if not header.startswith(_MAGIC):
        raise TaskMoEError(f"{index}: is no index of fairseq-preprocess; {AGAIN}")
    _check_index(index, size, data, data_size, header)


def check_pieces(prefix: str, largest: int, known: int) -> None:
    """Raise an error if a set has pieces that its dictionary lacks.

    Args:
        prefix: as for ``check_set``.
        largest: the largest number of a piece in the set.
        known: how many pieces the dictionary has.

    Raises:
        TaskMoEError: the set was binarised with another dictionary.
    """
    if largest >= known:
        raise TaskMoEError(
            f"{prefix}.bin: has piece number {largest}, but the dictionary has {known}; it was binarised with another "
            "dictionary, or is damaged: run fairseq-preprocess again with this one"
        )


def map_pieces(prefix: str) -> list[np.ndarray] | None:
    """All pieces of one language's half of a set, sentence ends included, in blocks that are mapped into memory.

    Args:
        prefix: as for ``check_set``.

    Returns:
        None for a set in one of fairseq's other formats, or where there is none.

    Raises:
        TaskMoEError: it is damaged.
    """
    check_set(prefix)
    index = Path(prefix + ".idx")
    header, _ = _start(index, _HEADER.size) if index.exists() else (b"", 0)
    if not header.startswith(_MAGIC):
        return None
    _, _, code, _ = _HEADER.unpack(header)
    pieces = np.memmap(prefix + ".bin", dtype=_TYPES[code], mode="r")
    return [pieces[start : start + _BLOCK] for start in range(0, len(pieces), _BLOCK)]


def _start(path: Path, count: int) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    try:
        with path.open("rb") as file:
            return file.read(count), path.stat().st_size
    except OSError as error:
        raise TaskMoEError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error


def _check_index(index: Path, size: int, data: Path, data_size: int, header: bytes) -> None:
    _, version, code, count = _HEADER.unpack(header)
    if version != 1 or code not in _TYPES:
        raise TaskMoEError(f"{index}: damaged; {AGAIN}")
    if count == 0:
        raise TaskMoEError(f"{index}: has no sentence; binarise text that has some, or leave the pair out")
    wanted = _HEADER.size + 12 * count
    if size != wanted:
        raise TaskMoEError(f"{index}: {'truncated' if size < wanted else 'damaged'}; {AGAIN}")
    lengths = np.memmap(index, dtype=np.int32, mode="r", offset=_HEADER.size, shape=(count,))
    starts = np.memmap(index, dtype=np.int64, mode="r", offset=_HEADER.size + 4 * count, shape=(count,))
    end = 0
    for first in range(0, count, _BLOCK):
        own, begun = lengths[first : first + _BLOCK], starts[first : first + _BLOCK]
        ends = end + np.cumsum(own, dtype=np.int64) * _TYPES[code].itemsize
        if own.min() < 1 or begun[0] != end or not np.array_equal(begun[1:], ends[:-1]):
            raise TaskMoEError(f"{index}: damaged; {AGAIN}")
        end = int(ends[-1])
    if data_size < end:
        raise TaskMoEError(f"{data}: truncated; {AGAIN}")
    if data_size > end:
        raise TaskMoEError(f"{data}: does not belong to {index.name}; {AGAIN}")
