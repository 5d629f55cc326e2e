"""Exact reading of memory-mapped tensors: their own pages, no others, and no longer than needed."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

PIECE = 1 << 23
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_libc = None if sys.platform == "win32" else ctypes.CDLL(None)


def _advise(start: int, end: int, advice: str) -> None:
    if _libc is not None and hasattr(mmap, advice):
        start -= start % mmap.PAGESIZE
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), getattr(mmap, advice))


def _range(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def return_freed_memory() -> None:
    """Let every large tensor that is freed go back to the system at once, instead of leaving holes in the heap.

    glibc otherwise learns from the first large one that is freed to keep such memory for itself.
    """
    if _libc is not None and hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)


def disable_readahead(tensors: Iterable[Tensor]) -> None:
    """Let reading one of these tensors, contiguous parts of one mapped file, not read what lies next to it.

    Disks read ahead by megabytes, which next to an expert are other experts.
    """
    ranges = [_range(tensor) for tensor in tensors if tensor.numel()]
    if ranges:
        _advise(min(start for start, _ in ranges), max(end for _, end in ranges), "MADV_RANDOM")


def release(tensors: Iterable[Tensor]) -> None:
    """Give back the pages of tensors of mapped files; they are read again when they are needed."""
    for tensor in tensors:
        if tensor.numel():
            _advise(*_range(tensor), "MADV_DONTNEED")


def read(tensor: Tensor) -> Tensor:
    """A copy in ordinary memory of a tensor of one or more dimensions that is part of a mapped file.

    Its pages are read in large pieces and then given back, for mapped pages count as the process's memory. Only for
    tensors of a mapped file: ordinary memory given back is lost.
    """
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    rows = max(1, PIECE * tensor.size(0) // max(1, tensor.nbytes))
    for source, target in zip(torch.split(tensor, rows), torch.split(copy, rows)):
        start, end = _range(source)
        _advise(start, end, "MADV_WILLNEED")
        target.copy_(source)
        _advise(start, end, "MADV_DONTNEED")
    return copy


def read_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Like ``read``, but of the given rows (int64) alone."""
    copy = tensor.index_select(0, rows)
    _advise(*_range(tensor), "MADV_DONTNEED")
    return copy
