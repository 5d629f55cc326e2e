"""The SentencePiece model that a subnet's text is cut into pieces with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

from taskmoe_plugin.errors import TaskMoEError

# The name that fairseq's hub interface looks for.
NAME = "sentencepiece.bpe.model"
# Its types are made when it is imported.
protocol: Any = sentencepiece_model_pb2
Piece = protocol.ModelProto.SentencePiece


@dataclass(frozen=True)
class PieceModel:
    """A SentencePiece model.

    Attributes:
        proto: its content, a ``ModelProto``, which nobody changes.
    """

    proto: Any

    @classmethod
    def read(cls, path: Path) -> PieceModel:
        """Read a model that SentencePiece has trained.

        Raises:
            TaskMoEError: the file is missing or no such model.
        """
        proto, content = protocol.ModelProto(), b""
        try:
            content = path.read_bytes()
            proto.ParseFromString(content)
        except OSError as error:
            raise TaskMoEError(
                f"--sentencepiece-model {path}: cannot be read ({error.strerror}); give the .model file of spm_train"
            ) from None
        except DecodeError:
            proto.Clear()
        if not proto.pieces:
            raise TaskMoEError(
                f"--sentencepiece-model {path}: no SentencePiece model; give the .model file of spm_train"
            )
        try:
            SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            problem = " ".join(str(error).split())
            raise TaskMoEError(f"--sentencepiece-model {path}: damaged ({problem}); copy it again") from None
        return cls(proto)

    def share_known(self, symbols: Collection[str]) -> float:
        """The share of some symbols that are pieces of the model."""
        return sum(symbol in self._known for symbol in symbols) / max(len(symbols), 1)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(piece.piece for piece in self.proto.pieces)

    def restricted(self, kept: Collection[str]) -> PieceModel:
        """The model that cuts text into some of its pieces alone; the others can still be joined to text.

        Args:
            kept: these pieces.
        """
        proto, wanted = self._copy(), set(kept)
        for piece in proto.pieces:
            if piece.type in (Piece.NORMAL, Piece.USER_DEFINED) and piece.piece not in wanted:
                piece.type = Piece.UNUSED
        return PieceModel(proto)

    def with_control(self, tokens: Iterable[str]) -> PieceModel:
        """The model with control symbols added, of which no text is left when pieces are joined."""
        proto = self._copy()
        for token in tokens:
            proto.pieces.add(piece=token, score=0, type=Piece.CONTROL)
        return PieceModel(proto)

    def serialized(self) -> bytes:
        """The content of a ``.model`` file."""
        content: bytes = self.proto.SerializeToString()
        return content

    def _copy(self) -> Any:
        proto = protocol.ModelProto()
        proto.CopyFrom(self.proto)
        return proto
