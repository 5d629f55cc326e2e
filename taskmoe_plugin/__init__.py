"""Task-level mixture of experts for fairseq (TaskMoE, Kudugunta et al. 2021).

Importing the package registers its task, model, architectures and criterion with fairseq; ``--user-dir`` does so.
"""

import os
from argparse import Namespace

import torch

from taskmoe_plugin import criterions, models, tasks

# fairseq's checkpoints hold flags in a Namespace, which PyTorch's safe loading refuses unless told it is harmless.
torch.serialization.add_safe_globals([Namespace])
# With this variable fairseq would run whatever a checkpoint brings along. PyTorch looks at it anew for every file.
os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)

__all__ = ["criterions", "models", "tasks"]
