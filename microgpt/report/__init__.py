"""A page about a model: `page` combines the results of `inspection` with the drawings of `figures`."""
