"""The training recipe of the starter model: a small network that points at the sentence that answers."""
