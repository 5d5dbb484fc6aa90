"""From a question to an answer whose every sentence can be found again in the documents."""
