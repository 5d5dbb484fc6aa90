"""How good searches and answers are: against judgements, and as they go on."""
