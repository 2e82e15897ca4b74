"""A page about a model: `page` puts together what `inspection` finds and `figures` draw."""
