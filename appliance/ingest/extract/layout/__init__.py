"""From words with their places to text in reading order, with headings, lists and tables."""
