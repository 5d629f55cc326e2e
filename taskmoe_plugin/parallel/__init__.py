"""Expert parallel in fairseq: what has to be refused, gradients, checkpoints."""

# What registers once fairseq is imported needs modules of this package: they must not be half imported then.
import fairseq  # noqa: F401
