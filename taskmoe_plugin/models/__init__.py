"""The ``taskmoe_transformer`` model: stock fairseq Transformer stacks with MoE layers in them."""

from taskmoe_plugin.models.taskmoe_transformer import TaskMoETransformerModel

__all__ = ["TaskMoETransformerModel"]
