"""Text to sentences, and documents to the pieces that are embedded, found and cited."""

from appliance.knowledge.chunk.passages import PASSAGE_WORDS, passages
from appliance.knowledge.chunk.pieces import Piece, pieces
from appliance.knowledge.chunk.sentences import SENTENCE_CHARACTERS, sentences

__all__ = ["PASSAGE_WORDS", "SENTENCE_CHARACTERS", "Piece", "passages", "pieces", "sentences"]
