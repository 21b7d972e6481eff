"""The same clients for asyncio."""
