"""Pages about models: of one, which also plays it (`page`), and of several, which are compared (`comparison`)."""
