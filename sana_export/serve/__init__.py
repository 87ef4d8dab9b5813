"""The server: one queue, one painter, an OpenAI-compatible API, jobs that can be watched, and one page."""
