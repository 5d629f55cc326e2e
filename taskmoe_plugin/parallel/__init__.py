"""Expert parallel in fairseq: what has to be refused, gradients, checkpoints."""

from taskmoe_plugin.registration import register

register()
