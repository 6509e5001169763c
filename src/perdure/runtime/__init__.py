"""The engine: runs invocations with asyncio, on the host's loop. It sees the Store protocol, never a store."""
