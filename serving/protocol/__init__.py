"""The wire format: protobuf messages and gRPC services, with the code generated from them.

``python -m multifacet.serving.protocol`` writes the generated code anew after a change of a ``.proto`` file.
"""
