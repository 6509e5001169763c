"""The server: the connection and the only code that knows nats-py; URLs, credentials, and what can be wrong."""
