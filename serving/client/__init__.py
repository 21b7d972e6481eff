"""Clients of the servers: over gRPC and frames, of one server, of replicas, of shards."""
