"""A page about a model: `page` combines what `microgpt.inspection` computes with the drawings of `figures`."""
