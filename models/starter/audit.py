"""How much of the training text also stands in XQuAD, the evaluation set: shared runs of eight and thirteen words."""
