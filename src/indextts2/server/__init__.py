"""The speech server: OpenAI's speech endpoints, incremental text over a websocket, voices, health and metrics."""
