"""How an upper model's features meet: DCN-V2, MaskNet, DLRM, DHEN."""
