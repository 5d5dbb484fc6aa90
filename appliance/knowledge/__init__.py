"""The knowledge base: encrypted collections of documents, searched and quoted (docs/reference/knowledge-format.md)."""
