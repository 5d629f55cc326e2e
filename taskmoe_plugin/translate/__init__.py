"""Raw text in and out with subnets in CTranslate2 and SentencePiece. Imports neither fairseq nor PyTorch."""
