"""Expert parallel in fairseq: what has to be refused, gradients, checkpoints."""
