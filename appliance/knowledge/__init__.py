"""The knowledge base: encrypted collections of documents, searched and quoted (docs/reference/storage-format.md)."""
