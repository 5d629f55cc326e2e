"""A process that translates with fairseq."""

from __future__ import annotations

from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.dataclass.configs import GenerationConfig
from torch import Tensor, nn

from taskmoe_plugin.bench.device import DTYPES
from taskmoe_plugin.bench.naive import make_naive
from taskmoe_plugin.bench.timing import make_clock
from taskmoe_plugin.bench.workers import Message, serve
from taskmoe_plugin.moe import TokenRouter


class EvenGate(nn.Module):
    """A gate that scores experts at random.

    A trained token gate spreads tokens over all experts. With random weights all hypotheses become the same, and would
    share a few experts.
    """

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(x.size(0), self.experts, device=x.device)


def set_up(message: Message) -> Any:
    """Load a checkpoint; each later message gives ``sentences``, lists of tokens, to translate as one batch.

    An answer has ``seconds`` and ``tokens``, those of the best hypotheses without the end of sentence.
    """
    torch.set_num_threads(message["threads"])
    source_lang, target_lang = message["pair"].split("-")
    device = torch.device(message["device"])
    overrides: dict[str, Any] = {"data": message["data"], "source_lang": source_lang, "target_lang": target_lang}
    if message["keep_packed"]:
        overrides["keep_packed"] = True
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([message["path"]], arg_overrides=overrides)
    for model in models:
        model.eval()
        if message["even_gates"]:
            for router in (each for each in model.modules() if isinstance(each, TokenRouter)):
                router.register_module("gate", EvenGate(router.gate.weight.size(0)))
        model.to(device, getattr(torch, DTYPES[message["precision"]]))
        if message["naive"]:
            make_naive(model)
        model.prepare_for_inference_(cfg)
    generation = GenerationConfig(beam=message["beam"])
    if message["length"]:
        generation.max_len_a, generation.max_len_b, generation.min_len = 0, message["length"], message["length"]
    clock = make_clock(message["cpu_time"], device)
    generator = task.build_generator(models, generation)

    def translate(message: Message) -> Message:
        ids = [task.source_dictionary.encode_line(" ".join(tokens), add_if_not_exist=False).long()
               for tokens in message["sentences"]]  # fmt: skip
        dataset = task.build_dataset_for_inference(ids, [len(each) for each in ids])
        batch = dataset.collater([dataset[index] for index in range(len(dataset))])
        if device.type == "cuda":
            batch = utils.move_to_cuda(batch, device)
        start = clock()
        hypotheses = task.inference_step(generator, models, batch)
        seconds = clock() - start
        return {"seconds": seconds, "tokens": sum(len(each[0]["tokens"]) - 1 for each in hypotheses)}

    return translate


if __name__ == "__main__":
    serve(set_up)
