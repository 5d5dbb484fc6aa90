"""OpenAI's HTTP protocol over the same parts as gRPC. No feature of its own.

Read against the published API reference and the `openai` client, version 3.
"""
