"""A process that translates with CTranslate2.

Run as a file, so that its memory has nothing of PyTorch and fairseq in it. It speaks the protocol of ``workers.py``,
which it therefore cannot import.
"""

import json
import os
import sys
import time

import ctranslate2


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    # getrusage would do, but on Linux a new process inherits what its parent had.
    with open("/proc/self/status", encoding="utf-8") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def main() -> None:
    """Load a model; each later message gives ``sentences``, lists of tokens, to translate as one batch."""
    setup = json.loads(sys.stdin.readline())
    translator = ctranslate2.Translator(
        setup["path"], device=setup["device"], intra_threads=setup["threads"], compute_type=setup["compute_type"]
    )
    clock = time.process_time if setup["cpu_time"] else time.perf_counter
    print(json.dumps({"peak_bytes": peak_bytes()}), flush=True)
    for line in sys.stdin:
        source = json.loads(line)["sentences"]
        target_prefix = [setup["target_prefix"]] * len(source) if setup["target_prefix"] else None
        start = clock()
        results = translator.translate_batch(
            source,
            target_prefix,
            beam_size=setup["beam"],
            min_decoding_length=setup["length"],
            max_decoding_length=setup["length"],
        )
        seconds = clock() - start
        tokens = sum(len(result.hypotheses[0]) for result in results)
        print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_bytes": peak_bytes()}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("CT2_VERBOSE", "-3")
    main()
