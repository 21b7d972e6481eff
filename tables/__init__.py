"""What an embedding table is: artefacts, id maps, snapshots, codecs, row-wise optimisers."""
