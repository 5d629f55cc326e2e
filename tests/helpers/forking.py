"""Processes forked from one that has imported everything: importing takes fairseq ten seconds.

There is one such process for all tests of a session, so what it imports is said here, once.
"""

from __future__ import annotations

import multiprocessing

context = multiprocessing.get_context("forkserver")
# PyTorch imports the second with the first update.
context.set_forkserver_preload(["tests.parallel.jobs", "torch._dynamo", "tests.robustness.preloaded"])
