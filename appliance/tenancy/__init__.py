"""Tenants and prompts: what is said to a model, and whose words each stretch of it is."""
