"""Conversions: checkpoints in, checkpoints out, each a module of one subject.

source      the checkpoint that is converted, of which only what is asked for is read
conversion  what all conversions have in common: they are checked, written in one step, and say what they changed
"""
