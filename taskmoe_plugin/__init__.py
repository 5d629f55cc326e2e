"""Task-level mixture of experts for fairseq (TaskMoE, Kudugunta et al. 2021).

Importing the package registers its task, models, criterions and optimizers with fairseq; ``--user-dir`` does so. In a
program that has not imported fairseq yet, that happens when it does: our own commands start at once, and translate
without fairseq.
"""

from taskmoe_plugin.registration import register_with_fairseq

register_with_fairseq()
