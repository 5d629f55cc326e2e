"""The model card of a subnet: a README.md whose head Hugging Face's hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from taskmoe_plugin.models.task_table import split_pair

NAME = "README.md"
USES = {
    "fairseq": "fairseq-generate, fairseq-interactive and fairseq's Python interface load `model.pt`",
    "ctranslate2": "`taskmoe translate .` translates text in this directory; CTranslate2 loads it",
    "huggingface": "transformers' `AutoModelForSeq2SeqLM` and `AutoTokenizer` load this directory",
    "argos": "`argostranslate.package.install_from_path` installs the package for Argos Translate and LibreTranslate",
}
LIBRARIES = {
    "fairseq": "fairseq",
    "ctranslate2": "ctranslate2",
    "huggingface": "transformers",
    "argos": "argostranslate",
}


def model_card(content: Mapping[str, Any], license: str | None) -> str:
    """The text of a model card.

    Args:
        content: what ``subnet.json`` says.
        license: the licence of the model, if it is known.
    """
    pairs, format = content["pairs"], content["format"]
    head = {
        "language": _languages(pairs),
        **({"license": license} if license else {}),
        "pipeline_tag": "translation",
        "library_name": LIBRARIES[format],
        "tags": ["translation", "taskmoe"],
    }
    # Every JSON value is one of YAML, too; unquoted, Norwegian's code would be a false.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()]
    return "\n".join(["---", *lines, "---", "", *_body(content)]) + "\n"


def _languages(pairs: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(re.split("[_-]", lang)[0] for pair in pairs for lang in split_pair(pair)))


def _body(content: Mapping[str, Any]) -> list[str]:
    source, subnet, full = content["source"], content["subnet"], content["full_model"]
    lines = [
        f"# Translation {', '.join(content['pairs'])}",
        "",
        f"A model of {subnet['parameters']:,} parameters, cut out of a multilingual mixture of experts of "
        f"{full['parameters']:,} by taskmoe_plugin; it translates as that model does.",
        "",
        f"- To use it: {USES[content['format']]}.",
    ]
    for pair, prefix in content["prefixes"].items():
        for side, tokens in prefix.items():
            lines += [f"- {pair}: each {side} begins with the token {' '.join(tokens)}."] if tokens else []
    if "quantization" in content:
        lines.append(f"- Weights: {content['quantization']}.")
    lines.append(f"- Cut out of `{source['file']}`, SHA-256 {source['sha256']}.")
    for pair, note in content.get("verified", {}).items():
        lines.append(f"- {pair}, compared with the full model: {note}.")
    lines.append("- `subnet.json` says which experts it has, and with what weights.")
    return lines
