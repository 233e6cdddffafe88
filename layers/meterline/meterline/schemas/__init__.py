"""Pydantic models of what crosses a border: HTTP, queue, webhook, settings."""
