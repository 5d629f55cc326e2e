"""A process that makes fairseq updates of one model on random data."""

from __future__ import annotations

from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from taskmoe_plugin.bench.timing import make_clock
from taskmoe_plugin.bench.workers import Message, serve
from taskmoe_plugin.memory import keep_freed_memory

BATCHES = 2  # updates go through these in turn


def set_up(message: Message) -> Any:
    """Build model, criterion and trainer from fairseq's command line; each later message asks for one update.

    An answer has ``seconds`` and ``words``, the target tokens of the update, as fairseq counts them for its wps.
    """
    torch.set_num_threads(message["threads"])
    args = options.parse_args_and_arch(options.get_training_parser(), message["args"])
    args.tpu = False  # fairseq takes --bf16 to mean a TPU
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(0)
    task = tasks.setup_task(cfg.task)
    model = task.build_model(cfg.model)
    trainer = Trainer(cfg, task, model, task.build_criterion(cfg.criterion))
    if args.cpu:
        # As the plugin's task does when training starts; here for the dense model, too.
        keep_freed_memory()
    clock = make_clock(message["cpu_time"], trainer.device)
    # Processes that train together have the same model, but batches of their own.
    torch.manual_seed(message.get("rank", 0))
    batches = [random_batch(task, message["pairs"], message["tokens"], message["length"]) for _ in range(BATCHES)]

    def update(_: Message) -> Message:
        batch = batches[trainer.get_num_updates() % BATCHES]
        with metrics.aggregate("train"):
            start = clock()
            trainer.train_step([batch])
            seconds = clock() - start
        return {"seconds": seconds, "words": batch["ntokens"], "parameters": sum(p.numel() for p in model.parameters())}

    return update


def random_batch(task: Any, pairs: list[str], tokens: int, length: int) -> dict[str, Any]:
    """A batch of sentences of one length, without padding, whose rows take the pairs in turn."""
    rows, words = max(1, tokens // length), task.source_dictionary
    source, target = (torch.randint(words.nspecial, len(words), (rows, length)) for _ in range(2))
    source[:, -1] = target[:, -1] = words.eos()
    net_input = {
        "src_tokens": source,
        "src_lengths": torch.full((rows,), length),
        "prev_output_tokens": target.roll(1, dims=1),
    }
    if hasattr(task, "pair_index"):
        ids = {lang: index for index, lang in enumerate(task.langs, 1)}
        for side, name in enumerate(("src_lang_id", "tgt_lang_id")):
            net_input[name] = torch.tensor([ids[pairs[row % len(pairs)].split("-")[side]] for row in range(rows)])
    return {
        "id": torch.arange(rows),
        "nsentences": rows,
        "ntokens": target.numel(),
        "net_input": net_input,
        "target": target,
    }


if __name__ == "__main__":
    serve(set_up)
