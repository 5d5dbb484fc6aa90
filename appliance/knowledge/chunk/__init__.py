"""Text to sentences, and documents to the pieces that are embedded, found and cited."""

from appliance.knowledge.chunk.pieces import Piece, pieces
from appliance.knowledge.chunk.sentences import SENTENCE_CHARACTERS, sentences

__all__ = ["SENTENCE_CHARACTERS", "Piece", "pieces", "sentences"]
