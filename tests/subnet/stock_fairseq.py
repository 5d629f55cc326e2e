"""fairseq and CTranslate2's converter without the plugin, in one process that answers requests, each a line of JSON.

Starting fairseq takes seconds, which tests that need it would all wait for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import traceback
from typing import Any


def command(tool: str, argv: list[str], text: str = "") -> dict[str, list[str]]:
    """Run one of fairseq's commands; gives score and text of the lines that it marks with H, by sentence number."""
    sys.argv, sys.stdin = [f"fairseq-{tool}", *argv], io.StringIO(text)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        importlib.import_module(f"fairseq_cli.{tool}").cli_main()
    lines = [line.split("\t") for line in printed.getvalue().splitlines() if line.startswith("H-")]
    return {number.removeprefix("H-"): [score, text] for number, score, text in lines}


def hub(directory: str, settings: dict[str, Any], lines: list[str], longest: int) -> list[str]:
    """Translate with fairseq's Python interface, as the documentation does."""
    from fairseq.models.transformer import TransformerModel

    model = TransformerModel.from_pretrained(directory, **settings)
    tokens = [model.binarize("__de__ " + model.apply_bpe(line)) for line in lines]
    return [model.decode(found[0]["tokens"]) for found in model.generate(tokens, beam=2, max_len_b=longest)]


def convert(subnet: str, output: str, sides: list[list[list[str]]]) -> list[list[float]]:
    """Convert with CTranslate2's own converter; gives the log-probabilities of targets."""
    import ctranslate2

    ctranslate2.converters.FairseqConverter(f"{subnet}/model.pt", subnet).convert(output)
    results = ctranslate2.Translator(output, device="cpu").score_batch(*sides)
    return [result.log_probs for result in results]


def answer(request: list[Any]) -> Any:
    kind, *arguments = request
    return {"hub": hub, "convert": convert}.get(kind, lambda *rest: command(kind, *rest))(*arguments)


def main() -> None:
    requests, answers = sys.stdin, sys.stdout
    for line in requests:
        question = json.loads(line)
        # PyTorch looks at it anew for every file.
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1" if question["trusted"] else "0"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found: dict[str, Any] = {"answers": [answer(request) for request in question["requests"]]}
            assert not any(name.startswith("taskmoe_plugin") for name in sys.modules)
        except BaseException:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
