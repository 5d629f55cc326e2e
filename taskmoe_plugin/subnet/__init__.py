"""Subnets: what is cut out of a trained model for one language pair, or for a few of them.

checkpoint  the trained model's file, of which only the kept tensors are ever read
gates       which experts a pair has in each MoE layer, and with what weights
plan        what becomes of each stack
fold        the experts of a task merged into one feed-forward network
weights     the tensors of the subnet
vocabulary  dictionaries, and the pieces that a pair needs of them
sentencepiece_model  what text is cut into pieces with
fairseq_format, ctranslate2_format, huggingface_format (and _tokenizer), argos_format    what is written
model_card  what each directory says of itself
verify      the subnet against the full model
extract     all of it together
scratch     checkpoints that are written without being in memory
"""
