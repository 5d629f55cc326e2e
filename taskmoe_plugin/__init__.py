"""Task-level mixture of experts for fairseq (TaskMoE, Kudugunta et al. 2021).

Importing the package registers its task, model, architectures and criterion with fairseq; ``--user-dir`` does so.
"""

from argparse import Namespace

import torch

from taskmoe_plugin import criterions, models, tasks

# fairseq's checkpoints hold flags in a Namespace, which PyTorch's safe loading refuses unless told it is harmless.
if hasattr(torch.serialization, "add_safe_globals"):
    torch.serialization.add_safe_globals([Namespace])

__all__ = ["criterions", "models", "tasks"]
