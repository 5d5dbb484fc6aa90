"""The knowledge base: encrypted collections of documents, searched and quoted from. See docs/reference/knowledge-format.md."""
