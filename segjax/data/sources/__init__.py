"""Sources of examples: the contract is `segjax.data.sources.protocol.Source`."""
