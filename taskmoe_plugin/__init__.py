"""Task-level mixture of experts for fairseq (TaskMoE, Kudugunta et al. 2021).

In a program that has imported fairseq, importing the package registers its task, models and criterions; ``--user-dir``
does so. In one that has not, it imports nothing: our own commands start at once, and translate without fairseq. There,
importing any part that needs fairseq (all but ``cli``, ``translate``, ``moe``) registers everything.
"""

import sys

from taskmoe_plugin.registration import register

if sys.modules.get("fairseq"):
    register()
