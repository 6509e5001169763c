"""The engine at work: asyncio on the host's loop. It sees the Store protocol, never a store."""
