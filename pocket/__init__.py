"""How the bundled model is made: from the drawings' packages to the weights and shards in `asdm_cli/pocket`."""
