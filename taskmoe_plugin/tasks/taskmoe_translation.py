"""``taskmoe_translation``: ``translation_multi_simple_epoch`` whose sentences know their languages."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

import torch
from fairseq.data import data_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.logging import metrics
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from taskmoe_plugin.errors import UsageError, listed, raise_all, use_one_line_errors
from taskmoe_plugin.files.dictionaries import read_dictionary
from taskmoe_plugin.files.locking import lock_directory
from taskmoe_plugin.memory import keep_freed_memory
from taskmoe_plugin.models.continuing import check_continues
from taskmoe_plugin.models.subnet_shape import take_up_pruning
from taskmoe_plugin.models.task_table import TaskTable, split_pair
from taskmoe_plugin.parallel.flags import check_flags
from taskmoe_plugin.parallel.memory import out_of_memory_ends_all
from taskmoe_plugin.parallel.resuming import Start, check_start, checkpoint_directories
from taskmoe_plugin.parallel.spread_experts import SpreadExperts
from taskmoe_plugin.tasks.damaged_files import explain
from taskmoe_plugin.tasks.explaining import explain_divergence, explain_flag
from taskmoe_plugin.tasks.flags import check_command
from taskmoe_plugin.tasks.language_ids import LanguageIdDatasetManager, complete_language_ids
from taskmoe_plugin.tasks.learning_rates import own_learning_rates
from taskmoe_plugin.tasks.remembered_flags import check_input, complete_flags, leave_defaults_open, remember_flags
from taskmoe_plugin.tasks.task_args import add_task_args, join_pairs, set_task_defaults
from taskmoe_plugin.tasks.validation_bleu import ValidationBleu, log_bleu, parse_bleu_args
from taskmoe_plugin.tasks.validation_usage import ValidationUsage


@register_task("taskmoe_translation")
class TaskMoETranslationTask(TranslationMultiSimpleEpochTask):
    """Multilingual translation that gives every row its language ids, and loses no sentence.

    Takes all flags of ``translation_multi_simple_epoch`` and the ``--eval-bleu`` flags of ``translation``. Language
    ids are int64, count from 1 in the order of ``--langs``, and are in ``net_input`` as ``src_lang_id`` and
    ``tgt_lang_id`` of shape (batch,).

    Attributes:
        routed_pairs: every pair the training data has, those of ``--extra-lang-pairs`` included.
    """

    @staticmethod
    def add_args(parser: ArgumentParser) -> None:
        TranslationMultiSimpleEpochTask.add_args(parser)
        leave_defaults_open(parser)
        add_task_args(parser)
        # Only a command line is parsed with this: a notebook or a program gets exceptions.
        use_one_line_errors(explain, explain_flag, explain_divergence)

    def __init__(self, args: Any, langs: list[str], dicts: dict[str, Any], training: bool) -> None:
        super().__init__(args, langs, dicts, training)
        self.data_manager = LanguageIdDatasetManager(args, self.lang_pairs, langs, dicts, self.sampling_method)
        extra = sorted(set(self.data_manager.extra_lang_pairs) - set(self.lang_pairs))
        self.routed_pairs = [*self.lang_pairs, *extra]
        self.pair_lookup = TaskTable.build("pair", langs, self.lang_pairs).lookup
        self.validation_bleu: ValidationBleu | None = None
        logdir = getattr(args, "tensorboard_logdir", None) if training else None
        self.validation_usage = ValidationUsage(logdir, self.lang_pairs) if logdir else None
        self.validation_iterators: dict[tuple[Any, ...], Any] = {}
        self.spread_experts: SpreadExperts | None = None
        self.optimizer: Any = None
        self.save_dir_lock: IO[bytes] | None = None
        parse_bleu_args(args)

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> TaskMoETranslationTask:
        """Load the dictionaries and set the task up, or raise ``UsageError``."""
        join_pairs(args)
        if not kwargs.get("from_checkpoint"):
            check_command(args)
        set_task_defaults(args)
        try:
            complete_flags(args)
            task = super().setup_task(args, **kwargs)
        except FileNotFoundError as error:
            raise UsageError(
                f"{error.filename}: no such file; give the directory that fairseq-preprocess wrote"
            ) from error
        except ValueError as error:
            raise UsageError(" ".join(str(error).split())) from error
        remember_flags(task)
        return task  # type: ignore[no-any-return]

    @classmethod
    def load_dictionary(cls, filename: str) -> Any:
        """Load a dictionary, or raise an error that names the file and the line."""
        try:
            dictionary = super().load_dictionary(filename)
        except Exception:
            if Path(filename).exists():
                read_dictionary(Path(filename))
            raise
        if len(dictionary) == dictionary.nspecial:
            read_dictionary(Path(filename))
        return dictionary

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split, or raise ``UsageError`` if a pair has none."""
        raise_all(self.data_manager.missing_data(split))
        super().load_dataset(split, epoch, combine, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        args.taskmoe_processes = 1
        if getattr(args, "moe_expert_parallel", False) and not from_checkpoint:
            args.taskmoe_processes = distributed_utils.get_data_parallel_world_size()
            check_flags(args, args.taskmoe_processes)
        starting = self.training and not from_checkpoint
        # fairseq-train has made the directory by now; a program that only builds a model writes nothing.
        if starting and not args.no_save and Path(args.save_dir).is_dir() and distributed_utils.get_global_rank() == 0:
            self.save_dir_lock = lock_directory(Path(args.save_dir), f"--save-dir {args.save_dir}")
        start = check_start(args) if starting else None
        if start is not None:
            take_up_pruning(args, start.args)
        model = super().build_model(args, from_checkpoint)
        if starting and getattr(args, "store_ema", False):
            _check_averages(model)
        # It is of this run alone, and would otherwise be in the checkpoint.
        del args.taskmoe_processes
        if not hasattr(model, "check_pair") and from_checkpoint:
            raise UsageError(
                f"{self._checkpoint_name(start)}: a model of --arch {args.arch} does not take the language ids of "
                "--task taskmoe_translation; use --task translation_multi_simple_epoch, or in an ensemble what taskmoe "
                "convert upcycle makes of it"
            )
        if not hasattr(model, "check_pair"):
            raise UsageError(
                f"--arch {args.arch}: does not take the language ids of --task taskmoe_translation; use "
                "taskmoe_transformer (dense with --moe-freq 0), or --task translation_multi_simple_epoch"
            )
        spread_experts = SpreadExperts(
            model,
            model.group,
            args.moe_expert_count,
            checkpoint_directories(self.args),
            self._checkpoint_name(start),
        )
        if not from_checkpoint:
            self.spread_experts = spread_experts
        if start is not None:
            langs = getattr(start.task, "langs", None) or ()
            check_continues(model.args, start.args, start.name, langs, start.is_finetuned)
            check_input(self, start.task, start.name, start.is_finetuned)
        if from_checkpoint:
            model.check_languages(self.langs)
        elif self.training:
            model.warn_of_idle_experts()
        if not self.training:
            model.keeps_packed = self.args.keep_packed
            model.check_pair(self.args.source_lang, self.args.target_lang)
        elif self.args.eval_bleu:
            self.validation_bleu = ValidationBleu(self, model, len(self.lang_pairs), set(self._langtoks().values()))
        return model

    def _checkpoint_name(self, start: Start | None) -> str:
        """What to call the checkpoint that a model is loaded from."""
        path = getattr(self.args, "path", None)
        return start.name if start else f"--path {path}" if path else "the checkpoint"

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    ) -> Any:
        """As fairseq's; takes the last argument, which the hub interface gives, from there too."""
        if prefix_allowed_tokens_fn is not None:
            args = Namespace(**{**args, "prefix_allowed_tokens_fn": prefix_allowed_tokens_fn})
        return super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs)

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Tell the model how many training tokens each pair has: they weigh its balance loss."""
        super().begin_epoch(epoch, model)
        model.set_training_tokens(self._pair_tokens(self.datasets[self.args.train_subset]))

    def _pair_tokens(self, dataset: Any) -> dict[tuple[int, int], tuple[int, int]]:
        totals: dict[tuple[int, int], Any] = defaultdict(int)
        for key, data, sampled in zip(dataset.keys, dataset.datasets, dataset.virtual_size_per_dataset):
            _, _, pair = key.partition(":")
            totals[self._ids(*split_pair(pair))] += sampled * data.sizes.mean(axis=0)
        return {pair: (int(source), int(target)) for pair, (source, target) in totals.items()}

    def _ids(self, source: str, target: str) -> tuple[int, int]:
        lang_dict = self.data_manager.lang_dict
        return lang_dict.index(source), lang_dict.index(target)

    def filter_indices_by_size(
        self, indices: Any, dataset: Any, max_positions: Any = None, ignore_invalid_inputs: bool = False
    ) -> Any:
        """As fairseq's; a sentence that is too long, and not to be skipped, is a ``UsageError``."""
        if not ignore_invalid_inputs:
            _, ignored = dataset.filter_indices_by_size(indices, max_positions)
            if len(ignored):
                pieces = ", ".join(map(str, map(int, dataset.size(ignored[0]))))
                raise UsageError(
                    f"sentence {ignored[0]}: has {pieces} pieces of source and target, and at most {max_positions} are "
                    "taken; give --skip-invalid-size-inputs-valid-test to leave out such sentences"
                )
        return super().filter_indices_by_size(indices, dataset, max_positions, ignore_invalid_inputs)

    def create_batch_sampler_func(
        self,
        max_positions: Any,
        ignore_invalid_inputs: bool,
        max_tokens: int | None,
        max_sentences: int | None,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
    ) -> Callable[[Any, int | None], list[Any]]:
        """A function that cuts a dataset into batches and, unlike fairseq's, keeps the last incomplete one."""

        def construct_batch_sampler(dataset: Any, epoch: int | None) -> list[Any]:
            if epoch is not None:
                dataset.set_epoch(epoch)
            with data_utils.numpy_seed(seed):
                indices = dataset.ordered_indices()
            if max_positions is not None:
                indices = self.filter_indices_by_size(indices, dataset, max_positions, ignore_invalid_inputs)
            if not len(indices) and dataset not in self.datasets.values():
                return []  # all that was given to translate is too long, and to be skipped
            if not len(indices):
                raise UsageError(
                    "no sentence is as short as --max-tokens, --max-source-positions and --max-target-positions ask "
                    "for; give larger ones"
                )
            try:
                batches = list(
                    dataset.batch_by_size(
                        indices,
                        max_tokens=max_tokens,
                        max_sentences=max_sentences,
                        required_batch_size_multiple=required_batch_size_multiple,
                    )
                )
            except AssertionError as error:  # before it looks at sentences
                raise UsageError(f"--max-tokens {max_tokens}: {error}; give more") from error
            # Batches are consecutive runs of indices; fairseq drops the last one if it is not a full multiple.
            kept = sum(len(batch) for batch in batches)
            return batches if kept == len(indices) else [*batches, indices[kept:]]

        return construct_batch_sampler

    def get_batch_iterator(self, dataset: Any, **kwargs: Any) -> Any:
        if self.args.sampling_method == "RoundRobin":
            # This one is batched by fairseq's base task, which has no hook to keep the last batch.
            kwargs["required_batch_size_multiple"] = 1
        if not self.training or dataset is self.datasets.get(self.args.train_subset):
            return super().get_batch_iterator(dataset, **kwargs)
        # fairseq would make one for every validation. Its cycle of references keeps the processes that read its data
        # until Python collects garbage, and then PyTorch waits five seconds for each of them.
        asked = (dataset, *sorted(kwargs.items()))
        if asked not in self.validation_iterators:
            self.validation_iterators[asked] = super().get_batch_iterator(dataset, **kwargs)
        return self.validation_iterators[asked]

    def train_step(
        self,
        sample: Any,
        model: Any,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Do forward and backward on a batch; with ``ignore_grad`` it is a filler, which counts for nothing."""
        sample = complete_language_ids(sample)
        if ignore_grad:
            sample = {**sample, "net_input": {**sample["net_input"], "filler": True}}
        if optimizer is not self.optimizer:
            self.optimizer = optimizer
            assert self.spread_experts is not None
            self.spread_experts.attach(model, optimizer, Path(self.args.save_dir).absolute())
            if self.args.cpu or not torch.cuda.is_available():
                keep_freed_memory()
        with out_of_memory_ends_all(model.group, self._limit(self.args.max_tokens, self.args.batch_size)):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad, **kwargs)

    def optimizer_step(self, optimizer: Any, model: Any, update_num: int) -> None:
        """Make an update, in which experts may have a learning rate of their own."""
        with own_learning_rates(optimizer):
            super().optimizer_step(optimizer, model, update_num)

    @staticmethod
    def _limit(tokens: int | None, sentences: int | None, kind: str = "") -> str:
        return f"--max-tokens{kind} {tokens}" if tokens else f"--batch-size{kind} {sentences}"

    def valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        limit = self._limit(self.args.max_tokens_valid, self.args.batch_size_valid, "-valid")
        with out_of_memory_ends_all(model.group, limit):
            return self._valid_step(sample, model, criterion)

    def _valid_step(self, sample: Any, model: Any, criterion: Any) -> Any:
        sample = complete_language_ids(sample)
        usage = self.validation_usage
        counting: AbstractContextManager[dict[str, Tensor]] = nullcontext({})
        if usage is not None:
            counting = usage.counting(model, self.pair_index(sample))
        with counting as counts:
            loss, sample_size, logging_output = super().valid_step(sample, model, criterion)
        logging_output.update(counts)
        if self.validation_bleu is not None:
            logging_output["bleu_statistics"] = self.validation_bleu.count(sample, self.pair_index(sample))
            model.wait_for_others()
        return loss, sample_size, logging_output

    def post_validate(self, model: Any, stats: dict[str, Any], meters: Any) -> None:
        """Write to TensorBoard, if ``--tensorboard-logdir`` is set, which experts the tasks use.

        Raises:
            UsageError: ``--best-checkpoint-metric`` is none of the metrics.
        """
        if self.training and self.args.best_checkpoint_metric not in stats:
            raise UsageError(
                f"--best-checkpoint-metric {self.args.best_checkpoint_metric}: validation has no such metric; give one "
                f"of {listed(sorted(stats))}"
            )
        if self.validation_usage is not None:
            self.validation_usage.write(model, stats["num_updates"])

    def post_save(self, path: str, num_updates: int) -> None:
        """Remove the files of experts whose checkpoints fairseq has removed."""
        if self.spread_experts is not None:
            self.spread_experts.remove_unused()

    def pair_index(self, sample: dict[str, Any]) -> Tensor:
        """(B,) int64, the place of each row's pair in ``lang_pairs``."""
        net_input = sample["net_input"]
        return self.pair_lookup.to(net_input["src_lang_id"].device)[net_input["src_lang_id"], net_input["tgt_lang_id"]]

    def inference_step(
        self, generator: Any, models: Any, sample: Any, prefix_tokens: Any = None, constraints: Any = None
    ) -> Any:
        """Translate a batch; its rows may have several target languages.

        Rows without language ids get those of ``--source-lang`` and ``--target-lang``.
        """
        pair = None if self.training else self._ids(self.args.source_lang, self.args.target_lang)
        sample = complete_language_ids(sample, pair)
        by_token = self.args.langtoks["main"][1] and not self.args.lang_tok_replacing_bos_eos
        if prefix_tokens is None and by_token and "tgt_lang_id" in sample["net_input"]:
            tgt_lang_id = sample["net_input"]["tgt_lang_id"]
            table = torch.zeros(len(self.langs) + 1, dtype=torch.int64, device=tgt_lang_id.device)
            for lang_id, langtok in self._langtoks().items():
                table[lang_id] = langtok
            prefix_tokens = table[tgt_lang_id].unsqueeze(1)
        return super().inference_step(generator, models, sample, prefix_tokens, constraints)

    def _langtoks(self) -> dict[int, int]:
        spec = self.args.langtoks["main"][1]
        if spec is None:
            return {}
        manager = self.data_manager
        # A program may translate into another language than the task was set up for.
        langs = self.target_langs if self.training else [self.args.target_lang]
        return {manager.lang_dict.index(lang): manager.get_decoder_langtok(lang, spec) for lang in langs}

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log what the criterion logs and, in validation, the losses (in bits) and BLEU of every direction."""
        super().reduce_metrics(logging_outputs, criterion)
        for name in ("loss", "nll_loss"):
            if any(f"pair_{name}" in log for log in logging_outputs):
                sums = sum(log[f"pair_{name}"] for log in logging_outputs) / math.log(2)
                tokens = sum(log["pair_ntokens"] for log in logging_outputs)
                for pair, total, count in zip(self.lang_pairs, sums.tolist(), tokens.tolist()):
                    if count:
                        metrics.log_scalar(f"{pair}_{name}", total / count, count, round=3)
        if any("bleu_statistics" in log for log in logging_outputs):
            log_bleu(sum(log["bleu_statistics"] for log in logging_outputs), self.lang_pairs)
        if self.validation_usage is not None:
            self.validation_usage.add(logging_outputs)


def _check_averages(model: Any) -> None:
    """fairseq averages all that a checkpoint has of a model, and fails at whole numbers in the first update."""
    if not all(each.is_floating_point() for each in model.state_dict().values()):
        raise UsageError(
            "--store-ema: gates that do not learn have whole numbers, which cannot be averaged; leave it out, or "
            "--moe-task-gate static"
        )
