"""What the servers of both adapters share: batches, limits, connections, health, metrics, pages, the process.

Knows neither images nor sentences. Nothing else of the core imports it; it needs the extra ``serve``.
"""
