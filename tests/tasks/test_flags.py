"""Flags that fairseq refuses with a traceback are refused with one line."""

from __future__ import annotations

from argparse import Namespace

import pytest

from taskmoe_plugin.errors import UsageError
from taskmoe_plugin.tasks.flags import LAST, check_command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"finetune_from_model": ""}, "--finetune-from-model: names no file"),
        ({"finetune_from_model": "x.pt", "restore_file": __file__}, "--finetune-from-model x.pt: cannot be given with"),
        ({"finetune_from_model": "x.pt", "reset_optimizer": True}, "--reset-optimizer: --finetune-from-model resets"),
        ({"finetune_from_model": "x.pt", "reset_lr_scheduler": True}, "--reset-lr-scheduler: --finetune-from-model"),
        ({"beam": 0}, "--beam 0: give at least 1"),
        ({"max_tokens_valid": "0"}, "--max-tokens-valid 0: give at least 1"),
        ({"max_tokens_valid": "many"}, "--max-tokens-valid many: is no whole number; give at least 1"),
    ],
)
def test_a_flag_that_cannot_work_is_named(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_command(Namespace(**{"restore_file": LAST, **flags}))


@pytest.mark.parametrize(
    "flags", [{}, {"finetune_from_model": "x.pt"}, {"reset_optimizer": True}, {"beam": 1}, {"max_tokens_valid": "400"}]
)
def test_flags_that_work_are_taken(flags: dict[str, object]) -> None:
    check_command(Namespace(**{"restore_file": LAST, **flags}))
