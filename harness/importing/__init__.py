"""Other people's checkpoints: read in a confined process, recognised, written as weights or models of the harness."""
